// SPDX-License-Identifier: Apache-2.0
//! Standard output. Whoever reads may have had enough, as `head` has: then there is nobody to print for, and that is no error.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process;

/// As `println!`, and ends the program in silence when nobody reads any more.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// As `print!`, and ends the program in silence when nobody reads any more.
macro_rules! put {
    ($($text:tt)*) => { $crate::out::print(format_args!($($text)*)) };
}

pub(crate) use {put, say};

/// Prints, or ends the program.
pub(crate) fn print(text: Arguments<'_>) {
    match io::stdout().lock().write_fmt(text) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => process::exit(crate::OK.into()),
        Err(error) => {
            eprintln!("isthmus: cannot print: {error}");
            process::exit(crate::CANNOT_TELL.into());
        }
    }
}
