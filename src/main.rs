//! The command `gqa2mla`.

#![allow(unsafe_code)] // See the first line of `main`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: no other thread has started.
    unsafe { gqa2mla::runtime::without_telemetry() };
    gqa2mla::cli::run(std::env::args_os()).into()
}
