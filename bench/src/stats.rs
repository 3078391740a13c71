// SPDX-License-Identifier: Apache-2.0
//! What is told of many measurements.

/// The value below which this share (0 to 1) of the samples lies (nearest rank). NaN for no samples at all.
pub(crate) fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The middle value; of an even number the lower of the two.
pub(crate) fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

/// Index of the contender whose turn is the `turn`-th of this round: every other round goes backwards, so that whoever comes
/// first does not always have the machine as another left it.
pub(crate) fn in_turn(round: usize, turn: usize, contenders: usize) -> usize {
    if round.is_multiple_of(2) { turn } else { contenders - 1 - turn }
}

/// A value as people read it: three digits that count.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "–".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| percentile(&samples, share)), [50.0, 99.0, 100.0]);
        assert_eq!(median(&[3.0]), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn every_contender_has_one_turn_in_each_round() {
        for round in 0..2 {
            let mut turns: Vec<usize> = (0..4).map(|turn| in_turn(round, turn, 4)).collect();
            turns.sort_unstable();
            assert_eq!(turns, [0, 1, 2, 3]);
        }
        assert_eq!(in_turn(1, 0, 4), 3);
    }
}
