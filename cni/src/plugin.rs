// SPDX-License-Identifier: Apache-2.0
//! What the `isthmus-cni` program does: checks the variables, hands the call to the agent, prints what comes back.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::delegate;
use crate::wire::{Answer, Delegated, PRINTED, Request, read_payload};
use crate::{NEWEST_VERSION, SUPPORTED_VERSIONS, code};

/// Longest time until an agent that does not answer is given up (a runtime tries again after code 11).
const PATIENCE: Duration = Duration::from_millis(4500);
/// STATUS is asked every few seconds, and is about this moment.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// The agent makes the link then, or takes it away.
const AFTER_DELEGATION: Duration = Duration::from_secs(20);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// What the program prints, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// 0 or 1.
    pub exit_code: u8,
    /// For standard output.
    pub stdout: Vec<u8>,
}

/// Runs one call against the agent behind `socket`; who called has the outcome.
pub fn run(request: &Request, socket: &Path) -> Outcome {
    run_and(request, socket, |_| Ok(())).0
}

/// The same, and prints the outcome; then the agent is told that it was printed, or what printing failed with.
pub fn run_and(
    request: &Request,
    socket: &Path,
    print: impl FnOnce(&[u8]) -> io::Result<()>,
) -> (Outcome, io::Result<()>) {
    let (outcome, stream) = call(request, socket);
    let printed = print(&outcome.stdout);
    if let (Some(mut stream), true) = (stream, printed.is_ok()) {
        // An agent that has gone meanwhile does not know it; what it does then is safe, too.
        let _ = stream.write_all(&[PRINTED]);
    }
    (outcome, printed)
}

/// One call, and the connection that it was answered on.
fn call(request: &Request, socket: &Path) -> (Outcome, Option<UnixStream>) {
    let unasked = |outcome| (outcome, None);
    let command = request.var("CNI_COMMAND").unwrap_or_default();
    let required: &[&str] = match command {
        "VERSION" => return unasked(version(request)),
        "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME"],
        "GC" | "STATUS" => &[],
        "" => &["CNI_COMMAND"],
        other => {
            let message = format!("unknown CNI_COMMAND {other:?}");
            return unasked(failure(request, code::INVALID_ENVIRONMENT, &message, ""));
        }
    };
    let missing: Vec<&str> = required.iter().copied().filter(|name| request.var(name).is_none()).collect();
    if !missing.is_empty() {
        let message = format!("required env variables [{}] missing", missing.join(","));
        let details = "the container runtime has to set them";
        return unasked(failure(request, code::INVALID_ENVIRONMENT, &message, details));
    }
    let status = command == "STATUS";
    let patience = if status { STATUS_PATIENCE } else { PATIENCE };
    match exchange(request, socket, patience) {
        Ok((outcome, stream)) => (outcome, Some(stream)),
        Err(error) => {
            let code = if status { code::UNAVAILABLE } else { code::TRY_AGAIN };
            let message = format!("the Isthmus agent on this node does not answer on {}", socket.display());
            let details =
                format!("{error}; see the pod of DaemonSet isthmus-agent in namespace isthmus-system");
            unasked(failure(request, code, &message, &details))
        }
    }
}

fn version(request: &Request) -> Outcome {
    let supported: Vec<String> = SUPPORTED_VERSIONS.iter().map(|version| quoted(version)).collect();
    let mine = quoted(&spoken_version(&request.stdin));
    let stdout = format!("{{\"cniVersion\":{mine},\"supportedVersions\":[{}]}}\n", supported.join(","));
    Outcome { exit_code: 0, stdout: stdout.into_bytes() }
}

fn exchange(request: &Request, socket: &Path, patience: Duration) -> io::Result<(Outcome, UnixStream)> {
    let deadline = Instant::now() + patience;
    let mut stream = connect(socket, deadline)?;
    stream.set_write_timeout(Some(left(deadline)))?;
    stream.write_all(&request.to_frame())?;
    let mut deadline = deadline;
    loop {
        stream.set_read_timeout(Some(left(deadline)))?;
        match Answer::parse(&read_payload(&mut stream)?).map_err(io::Error::other)? {
            Answer::Wait { seconds } => deadline = Instant::now() + Duration::from_secs(seconds.into()),
            Answer::Delegate { plugin, command } => {
                let outcome = delegate::run(request, &plugin, &command)
                    .unwrap_or_else(|why| failure(request, code::INVALID_CONFIG, &why, ""));
                let delegated = Delegated { exit_code: outcome.exit_code, stdout: outcome.stdout };
                stream.write_all(&delegated.to_frame())?;
                deadline = Instant::now() + AFTER_DELEGATION;
            }
            Answer::Done { exit_code, stdout } => return Ok((Outcome { exit_code, stdout }, stream)),
        }
    }
}

/// Connects, again and again until the deadline: an agent that is being replaced is back within a second or two.
fn connect(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    loop {
        match connect_once(path, left(deadline)) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() + CONNECT_PAUSE >= deadline => return Err(error),
            Err(_) => thread::sleep(CONNECT_PAUSE),
        }
    }
}

/// `connect` on a Unix socket waits while the listener's queue is full, as long as sending may take: without limit, if none is set
/// before, and the standard library cannot. A thread that bears the waiting would cost more than all else that the program does.
fn connect_once(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(
        &stream,
        sockopt::SendTimeout,
        &TimeVal::new(patience.as_secs() as i64, patience.subsec_micros().into()),
    )?;
    match connect_to(stream.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(stream.into()),
        Err(Errno::EAGAIN) => Err(ErrorKind::TimedOut.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Time until the deadline; never zero, which a socket would take for no limit.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// An error object of the specification.
fn failure(request: &Request, code: u32, message: &str, details: &str) -> Outcome {
    let version = quoted(&spoken_version(&request.stdin));
    let (message, details) = (quoted(message), quoted(details));
    let stdout =
        format!("{{\"cniVersion\":{version},\"code\":{code},\"msg\":{message},\"details\":{details}}}\n");
    Outcome { exit_code: 1, stdout: stdout.into_bytes() }
}

/// The configuration's version if we speak it, else our newest: what an error or VERSION is printed in.
fn spoken_version(stdin: &[u8]) -> String {
    top_level_string(stdin, "cniVersion")
        .filter(|version| SUPPORTED_VERSIONS.contains(&version.as_str()))
        .unwrap_or_else(|| NEWEST_VERSION.to_owned())
}

/// Finds `"key": "value"` in the outermost object of a JSON text. Enough for a version; no parser of JSON.
fn top_level_string(json: &[u8], key: &str) -> Option<String> {
    let (mut depth, mut at, mut last_key) = (0_u32, 0, None);
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let end = at + 1 + string_length(&json[at + 1..])?;
                let text = std::str::from_utf8(&json[at + 1..end]).ok()?;
                at = end;
                let after = json[end + 1..].iter().find(|byte| !byte.is_ascii_whitespace());
                if depth == 1 && after == Some(&b':') {
                    last_key = Some(text);
                } else if depth == 1 && last_key == Some(key) {
                    return Some(text.to_owned());
                }
            }
            b',' if depth == 1 => last_key = None,
            _ => {}
        }
        at += 1;
    }
    None
}

fn string_length(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|byte| {
        let end = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        end
    })
}

/// A JSON string literal (RFC 8259, section 7).
fn quoted(text: &str) -> String {
    let mut literal = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            control if (control as u32) < 0x20 => literal.push_str(&format!("\\u{:04x}", control as u32)),
            other => literal.push(other),
        }
    }
    literal.push('"');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_at_the_top_level_only() {
        let json = br#"{ "a": {"cniVersion": "9.9.9"}, "b": ["cniVersion", "8"], "c": "cniVersion", "cniVersion" : "1.0.0" }"#;
        assert_eq!(top_level_string(json, "cniVersion").as_deref(), Some("1.0.0"));
        for broken in [&b"{"[..], b"", b"{\"cniVersion\"", b"{\"cniVersion\":\"", b"\"\\\"", b"}}}]]"] {
            assert_eq!(top_level_string(broken, "cniVersion"), None);
        }
    }

    #[test]
    fn quotes_and_control_characters_cannot_break_out_of_the_error_object() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
