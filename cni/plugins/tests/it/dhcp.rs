// SPDX-License-Identifier: Apache-2.0
//! `dhcp`: leases of busybox' server, and of one that a test tells what to say.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable};
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::version::Version;
use isthmus_testkit::{Namespace, within};
use serde_json::{Value, json};

use crate::node::{Node, PATIENCE, Pod, go_programs, program, with};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Ends with the test, by its own process id.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Tells it to end, and waits.
    fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        within(PATIENCE, || match self.0.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("it still runs: {other:?}")),
        });
    }
}

/// A node whose bridge `t0` leads to a network with the server's address.
fn wired(node: &Node) -> Namespace {
    let lan = node.pod("lan");
    node.host.sh("ip link add t0 type bridge forward_delay 0; ip link set t0 up");
    node.lab.cable((&node.host, "up0", &[]), (&lan, "eth0", &["10.77.0.1/24"]));
    node.host.sh("ip link set up0 master t0");
    lan.sh("ip route add default dev eth0");
    lan
}

fn socket(node: &Node) -> PathBuf {
    node.dir.path().join("dhcp.sock")
}

fn daemon_of(node: &Node, program: &Path, words: &[&str]) -> Running {
    let socket = socket(node);
    let mut line = words.to_vec();
    let path = socket.display().to_string();
    line.extend(["daemon", "-socketpath", &path, "-timeout", "1s"]);
    let child = node.host.spawn(&program.display().to_string(), &line).unwrap();
    let running = Running(child);
    within(PATIENCE, || {
        std::os::unix::net::UnixStream::connect(&socket).map(drop).map_err(|error| error.to_string())
    });
    running
}

fn daemon(node: &Node) -> Running {
    daemon_of(node, &program(), &["dhcp"])
}

/// The same, which gives up early.
fn impatient(node: &Node) -> Running {
    let path = socket(node).display().to_string();
    let line = [
        "dhcp",
        "daemon",
        "-socketpath",
        &path,
        "-timeout",
        "300ms",
        "-resendmax",
        "300ms",
        "-resendtimeout",
        "2s",
    ];
    let running = Running(node.host.spawn(&program().display().to_string(), &line).unwrap());
    within(PATIENCE, || {
        std::os::unix::net::UnixStream::connect(&path).map(drop).map_err(|error| error.to_string())
    });
    running
}

fn config(node: &Node, ipam: &Value) -> Value {
    let base = json!({ "type": "dhcp", "daemonSocketPath": socket(node) });
    json!({ "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "t0", "ipam": with(&base, ipam) })
}

/// Debian's busybox as the server of addresses from `start` to `end`.
fn busybox(node: &Node, lan: &Namespace, range: (u8, u8), options: &str) -> Running {
    let dir = node.dir.path().join("udhcpd");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("leases"), "").unwrap();
    let (files, (start, end)) = (dir.display(), range);
    let text = format!(
        "start 10.77.0.{start}\nend 10.77.0.{end}\ninterface eth0\nlease_file {files}/leases\npidfile {files}/pid\n\
         option subnet 255.255.255.0\noption router 10.77.0.1\noption lease 600\n{options}\n"
    );
    std::fs::write(dir.join("conf"), text).unwrap();
    let conf = dir.join("conf").display().to_string();
    Running(lan.spawn("busybox", &["udhcpd", "-f", "-a", "100", &conf]).unwrap())
}

/// What a server saw, with its time.
type Seen = Arc<Mutex<Vec<(Instant, Message)>>>;

/// A server that says what the closure makes of a message: payloads, in order.
fn scripted(lan: &Namespace, answer: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static) -> Seen {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    lan.run(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).expect("the server's port");
        socket.set_broadcast(true).expect("broadcast");
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let Ok(message) = Message::from_bytes(&bytes[..length]) else { continue };
                noted.lock().unwrap().push((Instant::now(), message.clone()));
                let to = if from.ip().is_unspecified() { (Ipv4Addr::BROADCAST, 68).into() } else { from };
                for payload in answer(&message) {
                    let _ = socket.send_to(&payload, to);
                }
            }
        });
    });
    seen
}

fn reply(to: &Message, kind: MessageType, address: Ipv4Addr, lease_seconds: u32) -> Message {
    let mut message = Message::default();
    message.set_opcode(Opcode::BootReply).set_xid(to.xid()).set_yiaddr(address).set_chaddr(to.chaddr());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(SERVER));
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    options.insert(DhcpOption::Router(vec![SERVER]));
    options.insert(DhcpOption::AddressLeaseTime(lease_seconds));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap()
}

/// The usual answer: an offer for a discovery, a confirmation for a request.
fn usual(to: &Message, address: Ipv4Addr, lease_seconds: u32) -> Vec<Vec<u8>> {
    let kind = match to.opts().msg_type() {
        Some(MessageType::Discover) => MessageType::Offer,
        Some(MessageType::Request) => MessageType::Ack,
        _ => return Vec::new(),
    };
    vec![bytes(&reply(to, kind, address, lease_seconds))]
}

fn kinds(seen: &Seen) -> Vec<MessageType> {
    seen.lock().unwrap().iter().filter_map(|(_, message)| message.opts().msg_type()).collect()
}

fn address(result: &Value) -> &str {
    result["ips"][0]["address"].as_str().expect("an address")
}

const POD_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);

#[test]
fn pods_get_leases_side_by_side_and_give_them_back() {
    let Some(node) = Node::new("dhcp") else { return };
    let lan = wired(&node);
    let (_server, _daemon) = (busybox(&node, &lan, (100, 101), ""), daemon(&node));
    let config = config(&node, &json!({}));
    let spaces = [node.pod("one"), node.pod("two"), node.pod("three")];
    let pods =
        ["c0", "c1", "c2"].iter().zip(&spaces).map(|(id, space)| Pod::of(id, space)).collect::<Vec<_>>();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let adds = pods[..2].iter().map(|pod| scope.spawn(|| node.add(pod, &config))).collect::<Vec<_>>();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let mut given: Vec<&str> = results.iter().map(address).collect();
    given.sort_unstable();
    assert_eq!(given, ["10.77.0.100/24", "10.77.0.101/24"]);
    assert_eq!(results[0]["ips"][0]["gateway"], "10.77.0.1");
    assert_eq!(results[0]["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "10.77.0.1" }]));
    for (pod, result) in pods.iter().zip(&results) {
        pod.space.unwrap().ping("10.77.0.1").unwrap();
        node.check(pod, &config, result).unwrap();
    }
    // ADD for a container that has its lease gets the same one.
    let alone = with(&config, &json!({ "type": "dhcp" }));
    assert_eq!(address(&node.add(&pods[0], &alone)), address(&results[0]));
    node.del(&pods[0], &config);
    node.del(&pods[0], &config);
    let third =
        within(PATIENCE, || node.call("ADD", Some(&pods[2]), &config).map_err(|error| error.to_string()));
    assert_eq!(address(&third), address(&results[0]), "what was released is given again");
    node.gc(&config, &["c1"]).unwrap();
    node.check(&pods[1], &config, &results[1]).unwrap();
    assert_eq!(
        node.call("CHECK", Some(&pods[2]), &with(&alone, &json!({ "prevResult": third }))).unwrap_err().code,
        102
    );
}

#[test]
fn a_lease_is_prolonged_in_time_and_taken_back_by_a_refusal() {
    let Some(node) = Node::new("renewed") else { return };
    let lan = wired(&node);
    let refuses = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let order = std::sync::atomic::Ordering::SeqCst;
    let told = Arc::clone(&refuses);
    let seen = scripted(&lan, move |message| match told.load(order) {
        true => vec![bytes(&reply(message, MessageType::Nak, Ipv4Addr::UNSPECIFIED, 4))],
        false => usual(message, POD_ADDRESS, 4),
    });
    let _daemon = daemon(&node);
    let pod = node.pod("pod");
    let (this, config) = (Pod::of("c", &pod), config(&node, &json!({})));
    let result = node.add(&this, &config);
    assert_eq!(address(&result), "10.77.0.50/24");
    let renewals = || {
        let seen = seen.lock().unwrap();
        seen.iter()
            .filter(|(_, message)| message.ciaddr() == POD_ADDRESS)
            .map(|(at, _)| *at)
            .collect::<Vec<_>>()
    };
    within(PATIENCE, || match renewals().len() {
        0..3 => Err(format!("{:?}", kinds(&seen))),
        _ => Ok(()),
    });
    let at = renewals();
    assert!(at[1] - at[0] > Duration::from_secs(1), "half of the time is to pass: {:?}", at[1] - at[0]);
    node.check(&this, &config, &result).unwrap();
    pod.ping("10.77.0.1").unwrap();
    refuses.store(true, order);
    within(PATIENCE, || match pod.sh("ip -o link show eth0").contains("state DOWN") {
        true => Ok(()),
        false => Err(pod.sh("ip -o link show eth0")),
    });
    // The interface is down a moment before the daemon knows the lease as lost: CHECK fails then, too, with other words.
    within(PATIENCE, || {
        let lost = node.check(&this, &config, &result).unwrap_err();
        if lost.msg.contains("does not prolong the lease of 10.77.0.50") { Ok(()) } else { Err(lost) }
    });
    node.del(&this, &config);
}

#[test]
fn a_daemon_that_is_started_again_goes_on_with_its_leases() {
    let Some(node) = Node::new("restarted") else { return };
    let lan = wired(&node);
    let seen = scripted(&lan, |message| usual(message, POD_ADDRESS, 6));
    let first = daemon(&node);
    let pod = node.pod("pod");
    let (this, config) = (Pod::of("c", &pod), config(&node, &json!({})));
    let result = node.add(&this, &config);
    let gone = node.pod("gone");
    let other = Pod::of("other", &gone);
    node.add(&other, &with(&config, &json!({ "name": "elsewhere" })));
    drop(first);
    assert!(node.check(&this, &config, &result).unwrap_err().msg.contains("no DHCP daemon"));
    drop(gone);
    let before = kinds(&seen).len();
    let second = daemon(&node);
    node.check(&this, &config, &result).unwrap();
    within(PATIENCE, || {
        let kinds = kinds(&seen);
        if kinds[before..].contains(&MessageType::Request) { Ok(()) } else { Err(format!("{kinds:?}")) }
    });
    assert!(!kinds(&seen)[before..].contains(&MessageType::Discover), "{:?}", kinds(&seen));
    second.end();
    assert!(!socket(&node).exists(), "a daemon that ends takes its socket along");
    let _third = daemon(&node);
    node.del(&this, &config);
    within(PATIENCE, || match kinds(&seen).last() {
        Some(MessageType::Release) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let left = std::fs::read_dir(socket(&node).with_extension("leases")).unwrap().count();
    assert_eq!(left, 0, "a lease of a container that is gone is kept");
}

#[test]
fn a_silent_server_fails_add_and_says_what_to_look_at() {
    let Some(node) = Node::new("silent") else { return };
    let lan = wired(&node);
    let _daemon = impatient(&node);
    let pod = node.pod("pod");
    let (this, config) = (Pod::of("c", &pod), config(&node, &json!({})));
    let silent = node.call("ADD", Some(&this), &config).unwrap_err();
    assert_eq!(silent.code, 11);
    assert!(
        silent.msg.contains("no DHCP server answered on eth0") && silent.details.contains("67 and 68"),
        "{silent}"
    );
    assert!(!pod.sh("ip -o link").contains("eth0") && node.links() == ["t0", "up0"], "{:?}", node.links());
    // One that offers what is of no use is told apart.
    let seen = scripted(&lan, |message| {
        let mut offer = reply(message, MessageType::Offer, POD_ADDRESS, 600);
        offer.opts_mut().remove(OptionCode::SubnetMask);
        vec![bytes(&offer)]
    });
    let useless = node.call("ADD", Some(&this), &config).unwrap_err();
    assert!(useless.details.contains("10.77.0.1 is of no use: it has no subnet mask"), "{useless}");
    assert!(kinds(&seen).len() > 1, "it asks more than once");
}

#[test]
fn answers_that_are_malformed_or_for_others_are_passed_over_and_a_refused_request_begins_again() {
    let Some(node) = Node::new("malformed") else { return };
    let lan = wired(&node);
    let refused = std::sync::atomic::AtomicBool::new(false);
    let seen = scripted(&lan, move |message| {
        let mut answers = usual(message, POD_ADDRESS, 600);
        if message.opts().msg_type() == Some(MessageType::Request)
            && !refused.swap(true, std::sync::atomic::Ordering::SeqCst)
        {
            return vec![bytes(&reply(message, MessageType::Nak, Ipv4Addr::UNSPECIFIED, 0))];
        }
        let Some(good) = answers.first().cloned() else { return answers };
        let mut other = good.clone();
        other[4] ^= 1;
        let mut cut_option = good.clone();
        cut_option.truncate(243);
        cut_option.extend([51, 200, 1]);
        let mut no_cookie = good.clone();
        no_cookie[236] = 0;
        let mut long_address = good.clone();
        long_address[2] = 255;
        let stranger = reply(message, MessageType::Ack, Ipv4Addr::new(10, 77, 0, 66), 600);
        let bad = [
            vec![],
            vec![2],
            good[..100].to_vec(),
            other,
            cut_option,
            no_cookie,
            long_address,
            bytes(&stranger),
        ];
        answers.splice(0..0, bad);
        answers
    });
    let _daemon = daemon(&node);
    let pod = node.pod("pod");
    let (this, config) = (Pod::of("c", &pod), config(&node, &json!({})));
    assert_eq!(address(&node.add(&this, &config)), "10.77.0.50/24");
    let wanted = [MessageType::Discover, MessageType::Request, MessageType::Discover, MessageType::Request];
    assert_eq!(kinds(&seen), wanted);
    node.del(&this, &config);
}

#[test]
fn the_server_sees_who_asks_and_the_options_of_the_configuration() {
    let Some(node) = Node::new("options") else { return };
    let lan = wired(&node);
    let seen = scripted(&lan, |message| {
        let mut answers = usual(message, POD_ADDRESS, 600);
        if let Some(first) = answers.first_mut() {
            let mut message = Message::from_bytes(first).unwrap();
            let net = "10.9.0.0/16".parse().unwrap();
            message.opts_mut().insert(DhcpOption::ClasslessStaticRoute(vec![(net, SERVER)]));
            *first = bytes(&message);
        }
        answers
    });
    let socket_path = socket(&node).display().to_string();
    let pid_file = node.dir.path().join("pid");
    let line = [
        "dhcp",
        "daemon",
        "--socketpath",
        &socket_path,
        "-broadcast",
        "-pidfile",
        &pid_file.display().to_string(),
    ];
    let running = Running(node.host.spawn(&program().display().to_string(), &line).unwrap());
    within(PATIENCE, || std::fs::metadata(&pid_file).map_err(|error| error.to_string()));
    let pod = node.pod("pod");
    let this = Pod { args: "IgnoreUnknown=1;CLASS=gold", ..Pod::of("c", &pod) };
    let config = config(
        &node,
        &json!({
            "provide": [{ "option": "host-name", "value": "web" }, { "option": "60", "fromArg": "CLASS" }],
            "request": [{ "option": "121" }, { "option": "subnet-mask" }, { "skipDefault": true }],
            "priority": 50,
        }),
    );
    let result = node.add(&this, &config);
    assert_eq!(result["routes"], json!([{ "dst": "10.9.0.0/16", "gw": "10.77.0.1", "priority": 50 }]));
    assert!(pod.sh("ip route").contains("10.9.0.0/16 via 10.77.0.1 dev eth0 metric 50"));
    let mac = result["interfaces"][2]["mac"].as_str().unwrap().to_owned();
    for (_, message) in seen.lock().unwrap().iter() {
        let option = |code: OptionCode| message.opts().get(code).cloned();
        assert_eq!(
            option(OptionCode::ClientIdentifier),
            Some(DhcpOption::ClientIdentifier(b"\0c/net/eth0".to_vec()))
        );
        assert_eq!(option(OptionCode::Hostname), Some(DhcpOption::Hostname("web".to_owned())));
        assert_eq!(option(OptionCode::ClassIdentifier), Some(DhcpOption::ClassIdentifier(b"gold".to_vec())));
        let wanted = vec![OptionCode::ClasslessStaticRoute, OptionCode::SubnetMask];
        assert_eq!(option(OptionCode::ParameterRequestList), Some(DhcpOption::ParameterRequestList(wanted)));
        let shown: Vec<String> = message.chaddr().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((shown.join(":"), message.flags()), (mac.clone(), Flags::default().set_broadcast()));
    }
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), running.0.id().to_string());
    running.end();
    assert!(!pid_file.exists());
    node.del(&this, &config);
}

#[test]
fn without_a_daemon_or_with_another_projects_the_plugin_says_so() {
    let Some(node) = Node::new("no daemon") else { return };
    let pod = node.pod("pod");
    node.host.sh("ip link add t0 type bridge; ip link set t0 up");
    let (this, config) = (Pod::of("c", &pod), config(&node, &json!({})));
    let refused =
        |error: Error, words: &str| assert!(error.code == 50 && error.msg.contains(words), "{error}");
    refused(node.call("STATUS", None, &config).unwrap_err(), "start it with `dhcp daemon`");
    refused(node.call("ADD", Some(&this), &config).unwrap_err(), "start it with `dhcp daemon`");
    node.del(&this, &config);
    let _go = daemon_of(&node, &go_programs().join("dhcp"), &[]);
    refused(node.call("STATUS", None, &config).unwrap_err(), "the Go project's");
}

#[test]
fn a_socket_that_systemd_hands_on_is_served() {
    let Some(node) = Node::new("handed on") else { return };
    let (path, program) = (socket(&node).display().to_string(), program().display().to_string());
    let line = ["--listen", &path, &program, "dhcp", "daemon"];
    let _waiting = Running(node.host.spawn("systemd-socket-activate", &line).unwrap());
    let config = config(&node, &json!({}));
    within(PATIENCE, || node.call("STATUS", None, &config).map_err(|error| error.to_string()));
}

#[test]
fn dhcp_prints_what_the_go_plugin_prints() {
    let print = |node: &Node, daemon: Running| {
        let lan = wired(node);
        let _server = busybox(node, &lan, (100, 100), "option staticroutes 10.9.0.0/16 10.77.0.1");
        let mut printed = Vec::new();
        for version in Version::ALL {
            for ipam in [json!({}), json!({ "request": [{ "option": "121" }], "priority": 7 })] {
                let pod = node.pod("pod");
                let config = with(&config(node, &ipam), &json!({ "cniVersion": version, "type": "dhcp" }));
                pod.sh("ip link add eth0 type veth peer name far0");
                pod.sh(&format!(
                    "ip link set far0 netns {}; ip link set eth0 address 02:00:00:00:00:77",
                    node.host.holder()
                ));
                node.host.sh("ip link set far0 master t0 up");
                let this = Pod::of("same", &pod);
                let result = within(PATIENCE, || {
                    node.call("ADD", Some(&this), &config).map_err(|error| error.to_string())
                });
                node.del(&this, &config);
                node.host.sh("ip link del far0");
                printed.push((version, result));
            }
        }
        drop(daemon);
        printed
    };
    let (Some(ours), Some(go)) = (Node::new("dhcp"), Node::with_go("dhcp")) else { return };
    let mine = print(&ours, daemon(&ours));
    let theirs = print(&go, daemon_of(&go, &go_programs().join("dhcp"), &[]));
    for ((version, mine), (_, mut theirs)) in mine.into_iter().zip(theirs) {
        // Go writes an empty object where there is nothing to say.
        if theirs.get("dns") == Some(&json!({})) {
            theirs.as_object_mut().unwrap().remove("dns");
        }
        assert_eq!(mine, theirs, "{version}: ours to the left");
    }
}
