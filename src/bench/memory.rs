//! The peak memory of this process.

/// The peak resident memory of this process so far, in bytes; `None` outside Linux.
#[must_use]
pub fn peak() -> Option<u64> {
    of_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The field `VmHWM` of the text of `/proc/PID/status`, in bytes.
fn of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::of_status;

    #[test]
    fn the_peak_is_read_in_bytes() {
        let status = "VmPeak:\t   9000 kB\nVmHWM:\t    1234 kB\nVmRSS:\t     900 kB\n";
        assert_eq!(of_status(status), Some(1234 * 1024));
        assert_eq!(of_status("VmRSS:\t 900 kB\n"), None);
    }
}
