//! The origin of a report: its command, its date, and the model files that it is about.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use sha2::{Digest, Sha256};

/// Bytes that are read at once for a checksum.
const CHUNK: usize = 1 << 20;

/// The command line `arguments`, quoted for a shell, with the program's name in place of its path.
pub fn command(arguments: &[OsString]) -> String {
    let arguments = arguments.iter().skip(1);
    let mut words = vec!["gqa2mla".to_owned()];
    words.extend(arguments.map(|word| word.to_string_lossy().into_owned()));
    let quoted = shlex::try_join(words.iter().map(String::as_str));
    quoted.unwrap_or_else(|_| words.join(" "))
}

/// [`command`] without the options `left_out`, each with its value, and with `added` at its end.
pub fn command_with(arguments: &[OsString], left_out: &[&str], added: &[&str]) -> String {
    let mut kept: Vec<OsString> = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        match left_out.iter().find(|option| {
            text.strip_prefix(**option)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        }) {
            Some(option) if text == *option => drop(words.next()),
            Some(_) => {}
            None => kept.push(word.clone()),
        }
    }
    kept.extend(added.iter().map(OsString::from));
    command(&kept)
}

/// The current date and time in UTC, as `2026-01-31T12:00:00Z`.
pub fn now() -> String {
    format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// The I/O error if the file cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        hasher.update(bytes);
    }
    let digits = hasher.finalize();
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::sha256;

    #[test]
    fn a_checksum_is_that_of_the_usual_tools() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
