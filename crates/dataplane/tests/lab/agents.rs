// SPDX-License-Identifier: Apache-2.0
//! Two agents and what their operators would carry between them: each turn compiles what a side knows, configures its data plane
//! and brings its routes to what was compiled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use isthmus_compiler::{
    Block, Encapsulation, MAIN_TABLE, Node, NodeFacts, NodeIntent, Peer, Pool, RemoteGateway, RemoteLane,
    Uplink, compile, own_tunnels,
};
use isthmus_model::dataplane::{DataplaneConfig, DataplaneState, KeySlot, LaneKeys, Request};
use isthmus_model::kernel::{Desired, LinkKind, RouteKind};
use isthmus_model::ownership::{WIREGUARD_PORT, lane_port};

use super::{Pair, Running, Side, ping_loss};

const NAMES: [&str; 2] = ["east", "west"];

/// What an agent did last.
#[derive(Default)]
struct Agent {
    generation: u64,
    intent: NodeIntent,
    sent: Option<DataplaneConfig>,
    routes: BTreeMap<String, String>,
}

/// Two agents, and what their operators carry between them.
pub struct Agents<'a> {
    pair: &'a mut Pair,
    agents: [Agent; 2],
}

impl<'a> Agents<'a> {
    /// On nodes whose administrator asks for strict reverse path filters, as some distributions do.
    pub fn new(pair: &'a mut Pair) -> Self {
        for side in [&pair.east, &pair.west] {
            side.run("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 2 > /proc/sys/net/ipv4/conf/wire/rp_filter");
        }
        Self { pair, agents: Default::default() }
    }

    /// What they configure.
    pub fn pair(&mut self) -> &mut Pair {
        self.pair
    }

    /// Asks east for a later generation of its key.
    fn want_generation(&mut self, generation: u64) {
        self.agents[0].generation = generation;
    }

    /// Kills east's process and starts another; the agent tells that anew what to run.
    fn restart_east(&mut self) {
        self.pair.east.kill();
        self.pair.east.start();
        self.pair.east.connect(true);
        self.agents[0].sent = None;
    }

    /// East's agent connects anew, to whichever process answers by now, and tells that what to run.
    pub fn reconnect_east(&mut self) {
        self.pair.east.hang_up();
        self.pair.east.connect(false);
        self.agents[0].sent = None;
    }

    /// Turns until both states are as wanted, and nothing is left to be done; what they are then.
    ///
    /// # Panics
    /// When they are not within a minute.
    pub fn until(
        &mut self,
        what: &str,
        wanted: impl Fn(&DataplaneState, &DataplaneState) -> bool,
    ) -> [DataplaneState; 2] {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (states, settled) = self.turn();
            if settled && wanted(&states[0], &states[1]) {
                return states;
            }
            assert!(Instant::now() < deadline, "not within a minute: {what}; {states:#?}");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// What both sides told, and whether there was nothing to be done about it.
    fn turn(&mut self) -> ([DataplaneState; 2], bool) {
        let mut settled = true;
        let states = [self.pair.east.news(), self.pair.west.news()];
        for (here, there) in [(0, 1), (1, 0)] {
            let remote = announced(there, &states[there], &self.agents[there].intent);
            let intent = intent(here, remote, self.agents[here].generation);
            let facts = facts(here, &states[here]);
            let desired = compile(&intent, &facts);
            let side = if here == 0 { &mut self.pair.east } else { &mut self.pair.west };
            self.agents[here].intent = intent;
            settled &= self.agents[here].apply(side, &desired);
        }
        (states, settled)
    }
}

impl Agent {
    /// Routes first that no longer use what goes, then devices; a route by a device that is not there yet waits for the next turn.
    fn apply(&mut self, side: &mut Side, desired: &Desired) -> bool {
        let routes = routes(desired);
        let as_wanted = self.routes == routes && self.sent.as_ref() == Some(&desired.dataplane);
        if !as_wanted {
            self.bring_devices(side, desired);
        }
        self.bring_routes(side, &routes);
        if self.sent.as_ref() != Some(&desired.dataplane) {
            side.request(&Request::Configure(desired.dataplane.clone()));
            self.sent = Some(desired.dataplane.clone());
        }
        as_wanted
    }

    /// Addresses and settings of the devices that are there.
    fn bring_devices(&self, side: &Side, desired: &Desired) {
        let tunnels = desired.links.iter().filter(|(_, link)| link.kind == LinkKind::Tunnel);
        for (device, _) in tunnels {
            let filter = format!("net/ipv4/conf/{device}/rp_filter");
            let value = &desired.sysctls[&filter];
            side.run(&format!("[ -e /proc/sys/{filter} ] && echo {value} > /proc/sys/{filter}"));
            for (_, address) in desired.addresses.iter().filter(|(link, _)| link == device) {
                side.run(&format!("ip address replace {address} dev {device} 2>&1"));
            }
        }
    }

    fn bring_routes(&mut self, side: &Side, wanted: &BTreeMap<String, String>) {
        for (key, hops) in wanted {
            if self.routes.get(key) == Some(hops) {
                continue;
            }
            let devices = hops.split_whitespace().filter(|word| word.starts_with("iw-"));
            let up: Vec<String> = devices.map(|device| format!("ip link set {device} up")).collect();
            let script =
                format!("{{ {} && ip route replace {key} {hops}; }} 2>&1 && echo done", up.join(" && "));
            if side.run(&script).contains("done") {
                self.routes.insert(key.clone(), hops.clone());
            }
        }
        let gone: Vec<String> =
            self.routes.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            side.run(&format!("ip route del {key} 2>&1"));
            self.routes.remove(&key);
        }
    }
}

/// Routes through tunnels: what identifies each, and the rest of it, as ip(8) wants it.
fn routes(desired: &Desired) -> BTreeMap<String, String> {
    let tunnels: BTreeSet<_> = desired
        .links
        .iter()
        .filter(|(_, link)| link.kind == LinkKind::Tunnel)
        .map(|(name, _)| name)
        .collect();
    let mut routes = BTreeMap::new();
    for (key, route) in desired.routes.iter().filter(|(key, _)| key.table == MAIN_TABLE) {
        let RouteKind::Unicast(hops) = &route.kind else { continue };
        if !hops.iter().all(|hop| tunnels.contains(&hop.link)) {
            continue;
        }
        let metric = if key.metric == 0 { String::new() } else { format!(" metric {}", key.metric) };
        let source = route.source.map(|source| format!("src {source}")).unwrap_or_default();
        // IPv6 spreads flows over hops with a router only: as the agent's own routes have it.
        let via = if key.destination.addr().is_ipv6() { "via fe80::1 " } else { "" };
        let hops: Vec<String> = match hops.as_slice() {
            [hop] => vec![format!("{via}dev {}", hop.link)],
            hops => hops.iter().map(|hop| format!("nexthop {via}dev {}", hop.link)).collect(),
        };
        routes.insert(format!("{}{metric}", key.destination), format!("{source} {}", hops.join(" ")));
    }
    routes
}

fn intent(here: usize, gateways: BTreeMap<String, RemoteGateway>, key_generation: u64) -> NodeIntent {
    let (ours, theirs) = (here + 1, 2 - here);
    let node: isthmus_model::ids::NodeName = NAMES[here].parse().unwrap();
    let mut intent = NodeIntent { node: Some(node.clone()), key_generation, ..NodeIntent::nothing() };
    let addresses = vec![format!("192.0.2.{ours}").parse().unwrap()];
    intent.nodes.insert(node.clone(), Node { addresses, ..Node::default() });
    for (name, pool, block) in [
        ("four", format!("10.{ours}.0.0/16"), format!("10.{ours}.0.0/26")),
        ("six", format!("fd0{ours}::/64"), format!("fd0{ours}::/122")),
    ] {
        let pool = Pool {
            cidr: pool.parse().unwrap(),
            encapsulation: Encapsulation::CrossSubnet,
            nat_outgoing: true,
            serves_this_node: true,
            disabled: false,
            namespaces: None,
            reserved: Vec::new(),
            on_request: Vec::new(),
            external: false,
        };
        intent.pools.insert(name.parse().unwrap(), pool);
        let block_of = Block { pool: name.parse().unwrap(), node: node.clone(), pod: None };
        intent.blocks.insert(block.parse().unwrap(), block_of);
    }
    let remote = [format!("10.{theirs}.0.0/16"), format!("fd0{theirs}::/64")];
    let peer = Peer {
        remote_cidrs: remote.iter().map(|net| net.parse().unwrap()).collect(),
        gateways,
        local_gateways: [node].into(),
        ..Peer::default()
    };
    intent.peers.insert(NAMES[1 - here].parse().unwrap(), peer);
    intent
}

fn facts(here: usize, state: &DataplaneState) -> NodeFacts {
    let addresses = [format!("192.0.2.{}/24", here + 1).parse().unwrap()].into();
    let uplink = Uplink { mtu: 1500, addresses, ..Uplink::default() };
    let mut facts = NodeFacts { dataplane: state.clone(), ..NodeFacts::default() };
    facts.uplinks.insert("wire".parse().unwrap(), uplink);
    facts
}

/// What the gateway there is to the one here: as its operator announces it.
fn announced(
    there: usize,
    state: &DataplaneState,
    its_intent: &NodeIntent,
) -> BTreeMap<String, RemoteGateway> {
    let number = there + 1;
    let keys = [(&state.public_key, state.key_slot), (&state.next_public_key, state.key_slot.other())];
    let told = keys.into_iter().filter_map(|(key, slot)| Some((key.clone()?, slot)));
    let lanes = |slot| -> Vec<RemoteLane> {
        let lane = |(number, keys): (u8, &LaneKeys)| {
            let next = keys.next_public_key.as_ref().filter(|_| slot != state.key_slot);
            let public_key = next.unwrap_or(&keys.public_key).clone();
            RemoteLane { public_key, port: lane_port(WIREGUARD_PORT, number) }
        };
        (0..).zip(&state.lanes).map(lane).collect()
    };
    let gateways = told.map(|(public_key, slot)| {
        let tunnels = own_tunnels(its_intent, state).into_iter();
        let with_key = tunnels.filter(|(_, own)| own.key_slot == slot && !own.draining);
        let ports = with_key.filter_map(|(device, own)| {
            let port = state.tunnels.get(&device)?.listen_port?;
            let gateway = &its_intent.peers[own.peer].gateways[own.gateway];
            let to = gateway.lanes.get(usize::from(own.remote_lane)).map(|lane| &lane.public_key);
            Some((to.unwrap_or(&gateway.public_key).clone(), port))
        });
        let gateway = RemoteGateway {
            public_key,
            endpoints: vec![format!("192.0.2.{number}:{WIREGUARD_PORT}").parse().unwrap()],
            mesh_addresses: vec![
                format!("10.{number}.0.0").parse().unwrap(),
                format!("fd0{number}::").parse().unwrap(),
            ],
            ports: ports.collect(),
            lanes: lanes(slot),
        };
        let suffix = if slot == KeySlot::First { "" } else { ".key-1" };
        (format!("{}{suffix}", NAMES[there]), gateway)
    });
    gateways.collect()
}

/// Whether there are so many tunnels, and all are up.
pub fn all_up(state: &DataplaneState, tunnels: usize) -> bool {
    let up = state.probes.values().filter(|probe| probe.up).count();
    (state.tunnels.len(), up) == (tunnels, tunnels)
}

/// East's key rotates under traffic, and nothing is lost. Twice, so that its keys have had both slots. There are so many tunnels
/// between the two.
///
/// # Panics
/// When something is lost, or a phase does not come.
pub fn rotates(pair: &mut Pair, tunnels: usize) {
    let mut agents = Agents::new(pair);
    let up = |state: &DataplaneState| all_up(state, tunnels);
    let mut before = agents.until("every tunnel", |east, west| up(east) && up(west))[0].clone();
    for generation in [1, 2] {
        let pings = pings(agents.pair());
        agents.want_generation(generation);
        let during =
            agents.until("the new key is in use", |east, _| east.key_generation == generation)[0].clone();
        assert_eq!(during.previous_public_key, before.public_key, "the old one still receives");
        assert_ne!((&during.public_key, during.key_slot), (&before.public_key, before.key_slot));
        let after = agents.until("the old key is gone, and its tunnels on both sides", |east, west| {
            east.previous_public_key.is_none() && up(east) && up(west)
        });
        for (ping, what) in pings {
            let out = ping.output();
            assert_eq!(ping_loss(&out), 0, "generation {generation}, {what}: {out}");
        }
        let devices = agents.pair().east.run("ip -o link | grep iw-");
        assert_eq!(devices.lines().count(), tunnels, "{devices}");
        before = after[0].clone();
    }
}

/// 100 a second both ways, of both families, for as long as a rotation lasts.
fn pings(pair: &Pair) -> Vec<(Running, &'static str)> {
    let ping = |side: &Side, to: &str| side.spawn(&format!("ping -q -c 2400 -i 0.01 -W 10 {to}"));
    vec![
        (ping(&pair.east, "10.2.0.0"), "IPv4 from east"),
        (ping(&pair.east, "fd02::"), "IPv6 from east"),
        (ping(&pair.west, "10.1.0.0"), "IPv4 from west"),
        (ping(&pair.west, "fd01::"), "IPv6 from west"),
    ]
}

/// East's process is killed in each phase of a rotation, and it ends as it would have.
///
/// # Panics
/// When a phase does not come.
pub fn survives_in_each_phase(pair: &mut Pair) {
    let mut agents = Agents::new(pair);
    let reached = |state: &DataplaneState| state.probes.values().any(|probe| probe.up);
    let before = agents.until("a tunnel", |east, west| reached(east) && reached(west))[0].clone();
    agents.want_generation(1);
    let next =
        agents.until("a next key", |east, _| east.next_public_key.is_some())[0].next_public_key.clone();
    agents.restart_east();
    agents.until("the same next key in use", |east, _| east.public_key == next && east.key_generation == 1);
    agents.restart_east();
    let [east, _] = agents.until("the key before is gone", |east, _| east.previous_public_key.is_none());
    assert_eq!(east.public_key, next);
    assert_ne!(east.public_key, before.public_key);
    agents.until("the tunnel with the new key is up", |east, west| reached(east) && reached(west));
}
