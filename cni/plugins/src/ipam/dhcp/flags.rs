// SPDX-License-Identifier: Apache-2.0
//! The daemon's options, written as the Go plugin's: `-timeout 10s`, `--broadcast`, `-pidfile=/run/dhcp.pid`.

use std::path::PathBuf;
use std::time::Duration;

use super::calls::SOCKET;

pub(crate) const HELP: &str = "\
Usage: dhcp daemon [OPTION…]

  -pidfile FILE          write the process id there
  -hostprefix PATH       before the socket's path and those of network namespaces, where the host's root is mounted elsewhere
  -socketpath FILE       the socket that the plugin asks (default /run/cni/dhcp.sock); leases are kept beside it
  -broadcast             ask servers to answer to everybody
  -timeout TIME          how long to listen for the answer to one message (default 10s)
  -resendmax TIME        the longest pause between messages (default 62s)
  -resendtimeout TIME    when ADD gives up (default 3m28s)

TIME is written as 10s, 1m30s or 500ms.
";

/// How the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) host_prefix: String,
    pub(crate) socket: PathBuf,
    pub(crate) broadcast: bool,
    pub(crate) timeout: Duration,
    pub(crate) resend_max: Duration,
    pub(crate) resend_timeout: Duration,
}

impl Flags {
    /// Reads the options. The error is a line for people.
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut flags = Self {
            pid_file: None,
            host_prefix: String::new(),
            socket: SOCKET.into(),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: Duration::from_secs(62),
            resend_timeout: Duration::from_secs(208),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let flag = flag.ok_or_else(|| format!("{word:?} is no option"))?;
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            let mut value_of = || {
                value
                    .or_else(|| words.next().map(String::as_str))
                    .ok_or_else(|| format!("{word} has no value"))
            };
            match name {
                "broadcast" => flags.broadcast = truth(value.unwrap_or("true"))?,
                "pidfile" => flags.pid_file = Some(PathBuf::from(value_of()?)),
                "hostprefix" => value_of()?.clone_into(&mut flags.host_prefix),
                "socketpath" => flags.socket = value_of()?.into(),
                "timeout" => flags.timeout = duration(value_of()?)?,
                "resendmax" => flags.resend_max = duration(value_of()?)?,
                "resendtimeout" => flags.resend_timeout = duration(value_of()?)?,
                _ => return Err(format!("{word} is no option")),
            }
        }
        match &flags.pid_file {
            Some(file) if !file.is_absolute() => {
                Err(format!("-pidfile {}: not from the root on", file.display()))
            }
            _ => Ok(flags),
        }
    }

    /// A path of the host.
    pub(crate) fn on_host(&self, path: &std::path::Path) -> PathBuf {
        PathBuf::from(format!("{}{}", self.host_prefix, path.display()))
    }
}

fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("-broadcast={other}: neither true nor false")),
    }
}

/// `1m30s`, `1.5s`, `500ms`: a positive time, a year at most.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time, such as 10s, 1m30s or 500ms");
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let unit_at = rest.find(|letter: char| letter.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(unit_at);
        let end = tail.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let digits = |letter: char| letter.is_ascii_digit() || letter == '.';
        let number: f64 = number.parse().ok().filter(|_| number.chars().all(digits)).ok_or_else(wrong)?;
        seconds += number
            * match unit {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = tail;
    }
    match seconds > 0.0 && seconds <= 366.0 * 86400.0 {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_written_as_for_the_go_plugin() {
        let flags = parse(
            "-pidfile=/run/p --hostprefix /host -socketpath /s -broadcast -timeout 500ms -resendmax 1m30s -resendtimeout=1.5h",
        );
        let flags = flags.unwrap();
        assert_eq!((flags.pid_file.as_deref(), flags.broadcast), (Some("/run/p".as_ref()), true));
        assert_eq!(flags.on_host(&flags.socket), PathBuf::from("/host/s"));
        let millis = [flags.timeout, flags.resend_max, flags.resend_timeout].map(|time| time.as_millis());
        assert_eq!(millis, [500, 90_000, 5_400_000]);
        assert_eq!(parse("").unwrap().resend_timeout.as_secs(), 208);
        assert!(!parse("-broadcast=false").unwrap().broadcast);
    }

    #[test]
    fn what_is_no_option_and_no_time_is_refused() {
        for bad in [
            "x",
            "-x",
            "-timeout",
            "-timeout 10",
            "-timeout -1s",
            "-timeout 0s",
            "-timeout 1y",
            "-pidfile p",
            "-broadcast=x",
            "-timeout 99999999h",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
