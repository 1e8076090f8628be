//! Running many inputs, and seeing those that panic, hang or fill the memory.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::Target;
use crate::attempt::Ending;
use crate::seeds::Seeds;

/// A mutant takes a few milliseconds; this is a thousand times as long.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Peak of the process' resident memory, in bytes. The seeds take 60 MB; the largest has 0.4 MB, so a mutant that needs
/// a gigabyte makes something out of nothing.
pub const LARGEST_RESIDENT: u64 = 1 << 30;

/// An input and its name.
pub type Input = (String, Vec<u8>);

/// Runs every input; how many ended in which way.
///
/// # Panics
/// At the first input that panics, hangs, takes too much memory or makes the library report an internal error. The
/// input is kept in target/fuzz-findings; copied to fuzz/corpus/TARGET it becomes a test.
pub fn survive(
    target: Target,
    inputs: impl Iterator<Item = Input> + Send + 'static,
) -> BTreeMap<Ending, usize> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let seeds = Seeds::read();
        for (name, input) in inputs {
            // Before it runs: an abort or an overflow of the stack leaves it too.
            let kept = keep(target, &name, &input);
            let _ = sender.send((kept.clone(), None));
            let ending = catch_unwind(AssertUnwindSafe(|| target.run(&seeds, &input)));
            let peak = peak_resident();
            if ending.is_ok() && peak <= LARGEST_RESIDENT {
                let _ = fs::remove_file(&kept);
            }
            let _ = sender.send((kept, Some((ending.ok(), peak))));
        }
    });
    let mut endings = BTreeMap::new();
    let mut current = PathBuf::new();
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok((kept, None)) => current = kept,
            Ok((kept, Some((ending, peak)))) => {
                let kept = kept.display();
                let ending = ending.unwrap_or_else(|| panic!("{kept}: a panic"));
                assert!(
                    peak <= LARGEST_RESIDENT,
                    "{kept}: {} MiB resident",
                    peak >> 20
                );
                *endings.entry(ending).or_default() += 1;
            }
            Err(RecvTimeoutError::Timeout) => {
                panic!("{}: no end after {PATIENCE:?}", current.display())
            }
            Err(RecvTimeoutError::Disconnected) => return endings,
        }
    }
}

/// Writes an input where its finder looks for it.
fn keep(target: Target, name: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/fuzz-findings")
        .join(target.name());
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, input).unwrap();
    path
}

/// The most memory this process has had resident, in bytes; 0 where the system does not tell.
fn peak_resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
