// SPDX-License-Identifier: Apache-2.0
//! The command line.

use isthmus_packet_io::{Feature, Features};

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A text to print.
    Text(String),
    Run(Options),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) interface: String,
    pub(super) foreground: bool,
    /// Said by the process that waits in the foreground until this one is ready.
    pub(super) tell_ready: bool,
    /// What of the kernel's features may be used.
    pub(super) features: Features,
}

impl Default for Options {
    fn default() -> Self {
        Self { interface: String::new(), foreground: false, tell_ready: false, features: Feature::all() }
    }
}

const HELP: &str = "\
WireGuard in userspace, configured by wg(8).

Usage: isthmus-wg [-f] [--without FEATURE[,FEATURE...]] INTERFACE

  -f, --foreground   stay in the foreground
  --without          do not use this of the kernel: recvmmsg, sendmmsg, vnet-hdr, tso, uso,
                     udp-gro, udp-segment; what it has not is not used anyway
  -V, --version      print the version
  -h, --help         print this

The TUN device INTERFACE is made, and goes when the program ends: with SIGTERM, with the
device, or with the file of its socket, /var/run/wireguard/INTERFACE.sock.

  isthmus-wg wg0
  wg set wg0 listen-port 51820 private-key /etc/wireguard/wg0.key peer ... allowed-ips ...
  ip address add 10.0.0.1/24 dev wg0 && ip link set wg0 up

With wg-quick: WG_QUICK_USERSPACE_IMPLEMENTATION=isthmus-wg wg-quick up wg0
";

/// Reads the arguments, the program's name left out.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Asked, String> {
    let mut options = Options::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-h" | "--help" => return Ok(Asked::Text(HELP.into())),
            "-V" | "--version" => {
                return Ok(Asked::Text(format!("isthmus-wg {}\n", env!("CARGO_PKG_VERSION"))));
            }
            "-f" | "--foreground" => options.foreground = true,
            "--without" => {
                for name in arguments.next().unwrap_or_default().split(',') {
                    options.features.remove(&name.parse().map_err(|error| format!("--without: {error}"))?);
                }
            }
            "--tell-ready" => options.tell_ready = true,
            option if option.starts_with('-') => {
                return Err(format!("{option} is not an option; `isthmus-wg --help` names them"));
            }
            _ if !options.interface.is_empty() => return Err("one interface for each process".into()),
            name => options.interface = name.to_owned(),
        }
    }
    let name = &options.interface;
    if name.is_empty() {
        return Err("which interface? `isthmus-wg wg0`".into());
    }
    // As the kernel has it (dev_valid_name), and it becomes the name of a file.
    let valid = name.len() <= 15
        && !matches!(name.as_str(), "." | "..")
        && !name.bytes().any(|byte| matches!(byte, b'/' | b':') || byte.is_ascii_whitespace());
    if !valid {
        return Err(format!(
            "{name:?} cannot be the name of an interface: at most 15 bytes, without / and : and blanks"
        ));
    }
    Ok(Asked::Run(options))
}

/// The arguments that leave out all but these.
pub(super) fn without(features: &Features) -> Vec<String> {
    let gone: Vec<&str> =
        Feature::ALL.into_iter().filter(|feature| !features.contains(feature)).map(Feature::name).collect();
    if gone.is_empty() { Vec::new() } else { vec!["--without".into(), gone.join(",")] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, String> {
        parse(line.split_terminator(' ').map(str::to_owned))
    }

    #[test]
    fn options_come_before_and_after_the_interface() {
        let run = |foreground| {
            Ok(Asked::Run(Options { interface: "wg0".into(), foreground, ..Options::default() }))
        };
        assert_eq!(asked("wg0"), run(false));
        assert_eq!(asked("-f wg0"), run(true));
        assert_eq!(asked("wg0 --foreground"), run(true));
        assert!(matches!(asked("--help wg0"), Ok(Asked::Text(text)) if text.contains("Usage")));
    }

    #[test]
    fn features_are_left_out_by_name() {
        let Ok(Asked::Run(options)) = asked("--without uso,udp-segment wg0") else { panic!("it runs") };
        assert_eq!(options.features.len(), Feature::ALL.len() - 2);
        assert!(!options.features.contains(&Feature::UdpSegment));
        assert_eq!(without(&options.features), ["--without", "uso,udp-segment"]);
        assert!(without(&Feature::all()).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        for (line, reason) in [
            ("", "which interface"),
            ("wg0 wg1", "one interface"),
            ("-x wg0", "not an option"),
            ("--without gso wg0", "none of recvmmsg"),
            ("wg0 --without", "none of recvmmsg"),
            ("../etc", "cannot be the name"),
            ("..", "cannot be the name"),
            ("an-interface-too-long", "at most 15"),
        ] {
            let told = asked(line).unwrap_err();
            assert!(told.contains(reason), "{line}: {told}");
        }
    }
}
