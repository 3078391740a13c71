// SPDX-License-Identifier: Apache-2.0
//! What one tunnel carries on this machine, beside the bare veth pair. Run with
//! `cargo test --release -p isthmus-dataplane --test throughput -- --ignored --nocapture`; needs iperf3(1).

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use lab::as_root;

#[test]
#[ignore = "a measurement"]
fn one_tunnel_carries() {
    let Some(pair) = as_root("throughput") else { return };
    pair.east.until("the probe is up", |state| state.probes["tunnel"].up);
    let _server = pair.west.spawn("exec iperf3 -s >/dev/null 2>&1");
    pair.west.eventually("ss -ltn", |listening| listening.contains(":5201"));
    for (what, arguments) in [
        ("bare", "-c 192.0.2.2"),
        ("tunnel", "-c 10.2.0.0"),
        ("tunnel, back", "-c 10.2.0.0 -R"),
        ("tunnel, 4 flows", "-c 10.2.0.0 -P 4"),
    ] {
        let out = pair.east.run(&format!("iperf3 -t 5 {arguments} -f m | grep -E 'receiver' | tail -1"));
        println!("{what}: {}", out.trim());
    }
    let out = pair.east.run("ping -q -c 200 -i 0.01 10.2.0.0 | tail -1");
    println!("ping: {}", out.trim());
}
