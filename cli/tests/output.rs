// SPDX-License-Identifier: Apache-2.0
//! What the program does with what it prints.

use std::process::{Command, Stdio};

#[test]
fn who_has_read_enough_gets_no_complaint() {
    for arguments in [&["version"][..], &["completion", "bash"]] {
        let (reads, printed) = std::io::pipe().expect("a pipe");
        drop(reads);
        let program = env!("CARGO_BIN_EXE_isthmus");
        let ended = Command::new(program).args(arguments).stdout(printed).stderr(Stdio::piped()).output();
        let ended = ended.expect("it runs");
        let complaint = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!((ended.status.code(), complaint.as_str()), (Some(0), ""), "{arguments:?}");
    }
}
