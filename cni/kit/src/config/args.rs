// SPDX-License-Identifier: Apache-2.0
//! The variable `CNI_ARGS`: pairs such as `IgnoreUnknown=1;IP=10.0.0.2`.

use crate::error::{Error, code};

/// The pairs of `CNI_ARGS`, in the order in which their keys appear. Of a key that is there twice, the last value counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(Vec<(String, String)>);

impl Args {
    /// Reads the variable; empty text is no pair. Code 4 for a part that is not `key=value`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                return Err(Error::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: {part:?} is no pair")));
            };
            match pairs.iter_mut().find(|(own, _)| own == key) {
                Some((_, own)) => value.clone_into(own),
                None => pairs.push((key.to_owned(), value.to_owned())),
            }
        }
        Ok(Self(pairs))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(own, _)| *own == key).map(|(_, value)| value)
    }

    /// Every pair, in its order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Code 4 if there is a key other than `known`, unless the pairs say `IgnoreUnknown=1` (or `true`).
    pub fn expect_only(&self, known: &[&str]) -> Result<(), Error> {
        let tolerant = matches!(self.get("IgnoreUnknown"), Some("1" | "t" | "T" | "true" | "True" | "TRUE"));
        let unknown: Vec<&str> = self
            .iter()
            .map(|(key, _)| key)
            .filter(|key| *key != "IgnoreUnknown" && !known.contains(key))
            .collect();
        if tolerant || unknown.is_empty() {
            return Ok(());
        }
        Err(Error::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: unknown keys {unknown:?}"))
            .with_details("IgnoreUnknown=1 passes over them"))
    }
}

impl From<Args> for Vec<(String, String)> {
    /// The pairs in their order.
    fn from(args: Args) -> Self {
        args.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_an_unknown_key_is_refused_unless_ignore_unknown_is_set() {
        let strict = Args::parse("IP=10.0.0.2;K8S_POD_NAME=a").unwrap();
        assert_eq!(strict.get("IP"), Some("10.0.0.2"));
        assert_eq!(strict.expect_only(&["IP"]).map_err(|error| error.code), Err(4));
        assert_eq!(strict.expect_only(&["IP", "K8S_POD_NAME"]), Ok(()));
        assert_eq!(Args::parse("IgnoreUnknown=1;X=y").unwrap().expect_only(&[]), Ok(()));
        assert!(Args::parse("IgnoreUnknown=0;X=y").unwrap().expect_only(&[]).is_err());
    }

    #[test]
    fn p15_pairs_stay_in_their_order_and_the_last_value_of_a_key_counts() {
        let args = Args::parse("Z=1;A=2;;Z=3=4;E=").unwrap();
        assert_eq!(args.iter().collect::<Vec<_>>(), [("Z", "3=4"), ("A", "2"), ("E", "")]);
        assert_eq!((args.get("Z"), args.get("E"), args.get("B")), (Some("3=4"), Some(""), None));
        assert_eq!(Vec::from(args)[1], ("A".to_owned(), "2".to_owned()));
    }

    #[test]
    fn p15_a_part_that_is_no_pair_is_refused_with_code_4() {
        assert_eq!(Args::parse("IP").map_err(|error| error.code), Err(4));
        assert_eq!(Args::parse("=x").map_err(|error| error.code), Err(4));
        assert_eq!(Args::parse(""), Ok(Args::default()));
    }
}
