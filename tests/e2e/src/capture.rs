// SPDX-License-Identifier: Apache-2.0
//! What travels between the nodes: a capture on the lab's network, which every packet between nodes crosses.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use isthmus_testkit::within;

use crate::lab::{command, exec};

/// A running capture of all links of the lab's network.
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts capturing and returns once it does.
    #[track_caller]
    pub fn start(name: &str) -> Self {
        let file = std::env::temp_dir().join(format!("isthmus-e2e-{}-{name}.pcap", std::process::id()));
        let path = file.to_str().expect("a path of text");
        let mut tcpdump = command(["tcpdump", "-Z", "root", "-n", "-U", "-i", "any", "-s", "0", "-w", path]);
        let mut child =
            tcpdump.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("./lab exec starts");
        let mut said = BufReader::new(child.stderr.take().expect("its stderr"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            let read = said.read_line(&mut line).expect("tcpdump's words");
            assert!(read > 0, "tcpdump ended at once; is it installed? (apt-get install tcpdump)");
        }
        Self { child, file }
    }

    /// Waits until the capture holds a packet with these bytes.
    #[track_caller]
    pub fn sees(&self, words: &str) {
        within(Duration::from_secs(10), || {
            if self.holds(words) { Ok(()) } else { Err(format!("no packet with {words:?} in the capture")) }
        });
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

    /// Whether any packet so far holds these bytes in the clear.
    pub fn holds(&self, words: &str) -> bool {
        let bytes = std::fs::read(&self.file).unwrap_or_default();
        bytes.windows(words.len()).any(|window| window == words.as_bytes())
    }

    /// How many packets match a filter in tcpdump's language.
    pub fn count(&self, filter: &str) -> usize {
        let path = self.file.to_str().expect("a path of text");
        exec(&["tcpdump", "-n", "-r", path, filter])
            .unwrap_or_else(|error| panic!("{error:#}"))
            .lines()
            .count()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // `lab exec` becomes tcpdump, so that its number is tcpdump's. Ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}
