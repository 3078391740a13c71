// SPDX-License-Identifier: Apache-2.0
//! A gateway is cut off, the others carry on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_e2e::{EAST, Pod, WEST, cut_off, peered, pod, reconnect};

/// Asks again and again, each time over a new connection, and prints `<start, ms> <duration, ms> <curl's exit code>`.
const ASK: &str = r#"
end=$(( $(date +%s) + $1 ))
while [ $(date +%s) -lt $end ]; do
  start=$(date +%s%3N)
  curl -gs -o /dev/null -m 1 "$2"; code=$?
  echo $start $(( $(date +%s%3N) - start )) $code
  sleep 0.05
done"#;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64
}

/// Asks for some seconds by several threads; returns starts and curl's exit codes, in order of time.
fn asked(from: &Pod, url: &str, seconds: u32) -> Vec<(u64, u32)> {
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (from, url) = (from.clone(), url.to_owned());
            std::thread::spawn(move || {
                from.run(&["bash", "-c", ASK, "ask", &seconds.to_string(), &url])
                    .unwrap_or_else(|error| panic!("{error:#}"))
            })
        })
        .collect();
    let text: String = threads.into_iter().map(|thread| thread.join().expect("it asked")).collect();
    let mut rows: Vec<(u64, u32)> = text
        .lines()
        .filter_map(|line| {
            let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            Some((*numbers.first()?, *numbers.get(2)? as u32))
        })
        .collect();
    rows.sort_unstable();
    rows
}

#[test]
fn traffic_goes_through_the_other_gateway_within_two_seconds_after_one_is_cut_off() {
    let Some(duo) = peered() else { return };
    // Both workers of west are gateways. The pod that answers lives on the one that stays.
    let (from, to) = (pod(EAST, "three"), pod(WEST, "one"));
    let lost_gateway = pod(WEST, "three").node;
    assert_ne!(lost_gateway, to.node);
    let url = format!("http://{}:8080/hostname", to.ipv4);
    let asking = std::thread::spawn(move || asked(&from, &url, 12));
    let begun = now_ms();
    isthmus_e2e::within(Duration::from_secs(5), || {
        if now_ms() > begun + 3000 { Ok(()) } else { Err("three seconds of undisturbed traffic first") }
    });

    cut_off(&lost_gateway).unwrap_or_else(|error| panic!("{error:#}"));
    let cut = now_ms();
    let rows = asking.join().expect("it asked");
    reconnect(&lost_gateway);

    let failed = |row: &&(u64, u32)| row.1 != 0;
    let before: Vec<_> = rows.iter().filter(|row| row.0 + 1000 < cut).filter(failed).collect();
    let after = rows.iter().filter(|row| row.0 >= cut).filter(failed).map(|row| row.0 - cut).max();
    let late = rows.iter().filter(|row| row.0 >= cut + 2000).count();
    eprintln!("{} requests, the last that failed began {after:?} ms after the cut", rows.len());
    assert!(before.is_empty(), "requests failed before the cut already: {before:?}");
    assert!(late > 20, "only {late} requests were made later than two seconds after the cut");
    assert!(after.is_none_or(|ms| ms < 2000), "a request that began {after:?} ms after the cut failed");
    for cluster in [EAST, WEST] {
        duo.condition(cluster, "Ready", "True", Duration::from_secs(120));
    }
}
