// SPDX-License-Identifier: Apache-2.0
//! containerd takes pods through lists of our reference plugins and of the Go project's, mixed.

use std::collections::BTreeSet;
use std::time::Duration;

use isthmus_e2e::{EAST, Pod, apply, delete, duo, exec, fixture, kubectl, on_node, within};
use serde_json::{Value, json};

const NODE: &str = "east-worker2";
const SOON: Duration = Duration::from_secs(30);
/// Ours take the place of the node's own plugins of these names.
const OURS: [&str; 6] = ["bridge", "host-local", "portmap", "bandwidth", "tuning", "loopback"];
/// The Go project's, which are put beside them under a name with `go-` before it.
const THEIRS: [&str; 5] = ["bridge", "host-local", "portmap", "bandwidth", "tuning"];

/// A network: a handler of containerd with a list of its own (`NETWORK_HANDLERS` of xtask's `kind_config`).
struct Network {
    handler: &'static str,
    bridge: &'static str,
    /// Third number of its IPv4 addresses; also the end of the node's port.
    number: u16,
    /// What comes before the name of each plugin: `go-` for the Go project's, nothing for ours.
    plugins: [&'static str; 5],
}

/// In the order of [`THEIRS`].
const NETWORKS: [Network; 3] = [
    Network { handler: "network-a", bridge: "net-a", number: 1, plugins: ["", "", "", "", ""] },
    Network { handler: "network-b", bridge: "net-b", number: 2, plugins: ["go-", "go-", "", "", ""] },
    Network { handler: "network-c", bridge: "net-c", number: 3, plugins: ["", "", "go-", "go-", "go-"] },
];

impl Network {
    fn port(&self) -> u16 {
        18080 + self.number
    }

    fn list(&self) -> Value {
        let Self { handler, bridge, number, plugins } = self;
        let named = |place: usize| format!("{}{}", plugins[place], THEIRS[place]);
        json!({ "cniVersion": "1.1.0", "name": handler, "plugins": [
            { "type": named(0), "bridge": bridge, "isDefaultGateway": true, "ipMasq": true, "ipam": {
                "type": named(1),
                "ranges": [[{ "subnet": format!("10.66.{number}.0/24") }], [{ "subnet": format!("fd66:{number}::/64") }]],
            } },
            { "type": named(4), "sysctl": { "net.core.somaxconn": "517" } },
            { "type": named(2), "capabilities": { "portMappings": true } },
            { "type": named(3), "capabilities": { "bandwidth": true } },
        ] })
    }

    fn pods(&self) -> String {
        fixture("network-pods.yaml")
            .replace("NETWORK", self.handler)
            .replace("PORT", &self.port().to_string())
    }
}

/// The plugins and the networks on the node, until it is dropped.
struct Node;

const PUT_IN_PLACE: &str = r#"
set -e
mkdir -p /var/tmp/e2e-plugins
for name in "$@"; do
  file=/opt/cni/bin/$name
  if [ -e "$file" ] && [ ! -L "$file" ]; then mv "$file" /var/tmp/e2e-plugins/; fi
done
cp "/proc/$(pgrep -xo isthmus-agent)/root/usr/bin/isthmus-plugins" /var/tmp/e2e-plugins/
/var/tmp/e2e-plugins/isthmus-plugins install --copy /opt/cni/bin "$@""#;

const PUT_BACK: &str = r#"
for name in "$@"; do rm -f "/opt/cni/bin/$name" "/opt/cni/bin/go-$name"; done
rm -f /opt/cni/bin/isthmus-plugins /var/tmp/e2e-plugins/isthmus-plugins /etc/cni/network-*.d/*
for file in /var/tmp/e2e-plugins/*; do [ -e "$file" ] && mv "$file" /opt/cni/bin/; done
rmdir /var/tmp/e2e-plugins
for bridge in net-a net-b net-c; do ip link delete "$bridge"; done
true"#;

impl Node {
    fn prepare() -> anyhow::Result<Self> {
        let node = Self;
        on_node(NODE, PUT_IN_PLACE, &OURS)?;
        let places = xtask::places::Places::find()?;
        let programs = xtask::tools::CNI.build(&places)?;
        for name in THEIRS {
            let from = programs.join(name).display().to_string();
            exec(&["docker", "cp", &from, &format!("{NODE}:/opt/cni/bin/go-{name}")])?;
        }
        for network in NETWORKS {
            let file = format!("/etc/cni/{}.d/10-list.conflist", network.handler);
            // In one step, since containerd looks as soon as there is something.
            on_node(
                NODE,
                r#"printf %s "$2" > "$1.new" && mv "$1.new" "$1""#,
                &[&file, &network.list().to_string()],
            )?;
        }
        Ok(node)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pods = ["-n", "e2e", "pods", "-l", "app=other-network", "--grace-period=0"];
        if let Err(error) = delete(EAST, &pods).and_then(|_| on_node(NODE, PUT_BACK, &OURS)) {
            eprintln!("{NODE} is not as it was before: {error:#}");
        }
    }
}

#[test]
fn containerd_runs_pods_by_lists_of_our_plugins_and_the_go_projects_and_nothing_of_them_is_left() {
    let Some(_duo) = duo() else { return };
    let _node = Node::prepare().unwrap_or_else(|error| panic!("{error:#}"));
    let before = links();

    for network in NETWORKS {
        apply(EAST, &network.pods()).unwrap_or_else(|error| panic!("{error:#}"));
    }
    let ready =
        ["-n", "e2e", "wait", "--for=condition=Ready", "pod", "-l", "app=other-network", "--timeout=90s"];
    kubectl(EAST, &ready).unwrap_or_else(|error| panic!("{error:#}: {}", why()));
    for network in NETWORKS {
        serves(&network);
    }

    let all = ["-n", "e2e", "pods", "-l", "app=other-network"];
    delete(EAST, &all).unwrap_or_else(|error| panic!("{error:#}"));
    within(SOON, || nothing_left(&before));
}

/// Pods have addresses, reach each other and the world outside, answer on the node's port, and have their limits and settings.
#[track_caller]
fn serves(network: &Network) {
    let find = |role: &str| Pod::find(EAST, "e2e", &format!("{}-{role}", network.handler)).unwrap();
    let (server, client) = (find("server"), find("client"));
    for pod in [&server, &client] {
        let [four, six] = pod.addresses();
        assert!(four.starts_with(&format!("10.66.{}.", network.number)), "{pod:?}");
        assert!(six.starts_with(&format!("fd66:{}::", network.number)), "{pod:?}");
        let tuned = pod.run(&["sysctl", "-n", "net.core.somaxconn"]).unwrap();
        assert_eq!(tuned.trim(), "517", "{pod:?}");
    }
    for address in server.addresses() {
        let said = within(SOON, || client.get(address, "/hostname").map_err(|error| format!("{error:#}")));
        assert_eq!(said, server.name, "asked {address}");
    }
    for address in on_node(NODE, "hostname -I", &[]).unwrap().split_whitespace().filter(|it| is_nodes(it)) {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("http://{host}:{}/hostname", network.port());
        let asked = || exec(&["curl", "-gsS", "-m", "3", &url]).map_err(|error| format!("{error:#}"));
        assert_eq!(within(SOON, asked), server.name, "asked {url}");
    }
    let outside = on_node("west-control-plane", "hostname -I", &[]).unwrap();
    let outside = format!("https://{}:6443/version", outside.split_whitespace().next().unwrap_or_default());
    let answer = client.run(&["curl", "-ksS", "-m", "5", &outside]).unwrap();
    assert!(answer.contains("gitVersion"), "{answer}");
    let limits = on_node(NODE, "tc qdisc show | grep -c ' tbf .*rate 100Mbit' || true", &[]).unwrap();
    let limits: usize = limits.trim().parse().unwrap();
    assert!(limits >= 2 * NETWORKS.len(), "{limits} limits of bandwidth for {} pods", NETWORKS.len());
}

/// Whether it is an address of the lab's network, and not of one of the networks here.
fn is_nodes(address: &str) -> bool {
    !address.starts_with("10.") && !address.starts_with("fd66:") && !address.starts_with("fd00:10:")
}

fn links() -> BTreeSet<String> {
    let listed = on_node(NODE, "ls /sys/class/net", &[]).unwrap_or_default();
    listed.split_whitespace().filter(|name| !name.starts_with("net-")).map(str::to_owned).collect()
}

/// Links, limits, rules and addresses of the pods are gone.
fn nothing_left(before: &BTreeSet<String>) -> Result<(), String> {
    let new: Vec<String> = links().difference(before).cloned().collect();
    let left = on_node(
        NODE,
        "nft list ruleset | grep -E '10\\.66\\.|fd66:|1808[123]'; tc qdisc show | grep ' tbf '; \
         find /var/lib/cni -path '*network-[abc]*' -type f ! -name lock ! -name 'last_reserved_ip.*'; true",
        &[],
    )
    .map_err(|error| format!("{error:#}"))?;
    if new.is_empty() && left.is_empty() {
        Ok(())
    } else {
        Err(format!("links {new:?} are left, and:\n{left}"))
    }
}

/// What kubelet says of pods that do not become ready.
fn why() -> String {
    kubectl(EAST, &["-n", "e2e", "get", "events", "--sort-by=.lastTimestamp"]).unwrap_or_default()
}
