// SPDX-License-Identifier: Apache-2.0
//! What travels on the wire.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use isthmus_testkit::within;

use crate::duo::{EAST, NODES};
use crate::lab::{command, exec, on_node};

/// Running captures of one or more links.
pub struct Capture {
    parts: Vec<Part>,
}

struct Part {
    tcpdump: Child,
    file: PathBuf,
}

impl Capture {
    /// Captures every frame that the nodes of east exchange with anything but each other: nodes of west, and the router
    /// that the default route leads to. Returns once it does. Frames are told by their hardware addresses, whatever
    /// packets they hold: those of pods too.
    #[track_caller]
    pub fn between_clusters(name: &str) -> Self {
        let of = |cluster: &'static str| NODES.into_iter().filter(move |node| node.starts_with(cluster));
        let address = |node| {
            on_node(node, "cat /sys/class/net/eth0/address", &[]).unwrap_or_else(|error| panic!("{error:#}"))
        };
        let east: Vec<String> = of(EAST).map(|node| address(node).trim().to_owned()).collect();
        let one_of = |end: &str| {
            let ends: Vec<String> = east.iter().map(|address| format!("ether {end} {address}")).collect();
            ends.join(" or ")
        };
        let filter = format!("not (({}) and ({}))", one_of("src"), one_of("dst"));
        let start = |node: &str| {
            let process = exec(&["docker", "inspect", "-f", "{{.State.Pid}}", node])
                .unwrap_or_else(|error| panic!("{error:#}"));
            let namespace = format!("--net=/proc/{}/ns/net", process.trim());
            Part::start(&format!("{name}-{node}"), &["nsenter", &namespace], "eth0", &filter)
        };
        Self { parts: of(EAST).map(start).collect() }
    }

    /// Captures what matches a filter anywhere on the lab's network.
    #[track_caller]
    pub fn of(name: &str, filter: &str) -> Self {
        Self { parts: vec![Part::start(name, &[], "any", filter)] }
    }

    /// Waits until the capture holds a packet with these bytes.
    #[track_caller]
    pub fn sees(&self, words: &str) {
        let look = || {
            if self.holds(words) { Ok(()) } else { Err(format!("no packet with {words:?} in the capture")) }
        };
        within(Duration::from_secs(10), look);
    }

    /// Whether any packet so far holds these bytes in the clear.
    pub fn holds(&self, words: &str) -> bool {
        let found =
            |part: &Part| Command::new("grep").args(["-q", "-a", "-F", words]).arg(&part.file).status();
        self.parts.iter().any(|part| found(part).expect("grep starts").success())
    }

    /// Waits until the capture holds a packet that matches a filter in tcpdump's language.
    ///
    /// # Errors
    /// After two seconds.
    pub fn finds(&self, filter: &str) -> Result<(), String> {
        let start = Instant::now();
        while self.count(filter) == 0 {
            if start.elapsed() > Duration::from_secs(2) {
                return Err(format!("no packet of {filter:?} in the capture"));
            }
        }
        Ok(())
    }

    /// How many packets match a filter in tcpdump's language.
    #[track_caller]
    pub fn count(&self, filter: &str) -> usize {
        let read = |part: &Part| {
            exec(&["tcpdump", "-n", "-r", text(&part.file), filter])
                .unwrap_or_else(|error| panic!("{error:#}"))
        };
        self.parts.iter().map(|part| read(part).lines().count()).sum()
    }
}

impl Part {
    #[track_caller]
    fn start(name: &str, within_namespace: &[&str], link: &str, filter: &str) -> Self {
        let file = std::env::temp_dir().join(format!("isthmus-e2e-{}-{name}.pcap", std::process::id()));
        let tcpdump = ["tcpdump", "-Z", "root", "-n", "-U", "-i", link, "-s", "0", "-w", text(&file), filter];
        let mut command = command(within_namespace.iter().chain(&tcpdump).copied());
        let mut tcpdump =
            command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("./lab exec starts");
        let mut said = BufReader::new(tcpdump.stderr.take().expect("its stderr"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            let read = said.read_line(&mut line).expect("tcpdump's words");
            assert!(read > 0, "tcpdump ended at once; is it installed? (apt-get install tcpdump)");
        }
        Self { tcpdump, file }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Each program before it became the next, so that the child is tcpdump. Ended already is fine.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}
