// SPDX-License-Identifier: Apache-2.0
//! Leases as a DHCP daemon before this one kept them.

use std::time::{Duration, Instant};

use crate::Seed;
use crate::private::dhcp::client::Patience;
use crate::private::dhcp::record::{Now, Record};

pub(crate) fn run(bytes: &[u8]) {
    let Some(record) = Record::parse(bytes) else { return };
    assert!(!record.key.container_id.contains('/') && !record.key.network.contains('/'));
    let written = serde_json::to_vec(&record).expect("JSON");
    assert_eq!(Record::parse(&written).as_ref(), Some(&record));
    let patience = Patience { first: Duration::from_secs(2), most: Duration::from_secs(62) };
    let now = Now { instant: Instant::now(), since_1970: Duration::from_secs(1_800_000_000) };
    let mut client = record.client(patience, 7, now);
    let kept = Record::of(&record.key, &record.place, &client, now).expect("it has a lease");
    assert_eq!((&kept.lease, &kept.identity), (&record.lease, &record.identity));
    client.poll(now.instant);
    assert!(client.next().is_none_or(|next| next > now.instant), "it would not rest");
}

const LEASE: &str = r#"{"key":{"network":"net","containerId":"c","ifname":"eth0"},"place":{"netns":"/run/netns/x","device":4,"inode":7},
"identity":{"mac":[2,0,0,0,0,7],"client_id":[0,99],"provide":{"12":[119]},"request":[1,3],"broadcast":false},
"lease":{"address":"10.0.0.50/24","server":"10.0.0.1","gateway":null,"routes":[["0.0.0.0/0","10.0.0.1"]],
"times":{"renew":{"secs":400,"nanos":0},"rebind":{"secs":700,"nanos":0},"end":{"secs":800,"nanos":0}}},
"since":{"secs":1799999900,"nanos":0}}"#;

pub(crate) fn seeds() -> Vec<Seed> {
    let with = |from: &str, to: &str| LEASE.replace(from, to).into_bytes();
    vec![
        ("lease", LEASE.into()),
        (
            "without-an-end",
            with(
                "\"times\":{\"renew\":{\"secs\":400,\"nanos\":0},\"rebind\":{\"secs\":700,\"nanos\":0},\"end\":{\"secs\":800,\"nanos\":0}}",
                "\"times\":null",
            ),
        ),
        ("long-ago", with("1799999900", "0")),
        ("later", with("1799999900", "18446744073709551615")),
        ("elsewhere", with("\"c\"", "\"../../etc/x\"")),
        ("times-out-of-order", with("400", "900")),
    ]
}
