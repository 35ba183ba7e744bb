//! Xids: the errors that NVIDIA's kernel driver reports, of the device or of a program on it, and where
//! they stand in the kernel's log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Errors that say that the device, not a program, is at fault. From NVIDIA's catalogue of Xids.
const FAULTS: [(u32, &str); 15] = [
    (48, "a memory error that could not be corrected"),
    (62, "the device's controller halted"),
    (64, "a memory page or row could not be taken out of use"),
    (74, "an NVLink failed"),
    (79, "the device has fallen off the bus"),
    (92, "many memory errors"),
    (94, "a memory error, contained in one program"),
    (95, "a memory error, not contained"),
    (110, "a security fault of the device"),
    (119, "the device's system processor does not answer"),
    (120, "the device's system processor failed"),
    (136, "the device is not trained on its link"),
    (140, "a memory error that could not be recovered"),
    (143, "the device could not be initialised"),
    (154, "the device must be recovered"),
];

/// `: what it means`, or nothing for errors that programs cause.
pub fn words(code: &str) -> String {
    let known = FAULTS.iter().find(|(xid, _)| xid.to_string() == code);
    known.map_or(String::new(), |(_, words)| format!(": {words}"))
}

/// `00000000:3B:00.0` and the kernel's `0000:3b:00` are one: domain, bus and device.
pub fn address(text: &str) -> String {
    let text = text.to_lowercase();
    let text = text.split('.').next().unwrap_or_default();
    match text.split_once(':') {
        Some((domain, rest)) => format!("{}:{rest}", domain.trim_start_matches('0')),
        None => text.to_owned(),
    }
}

/// The devices' faults in the kernel's log of the last day, by address. Nothing where this user may
/// not read it.
pub fn in_kernel_log() -> BTreeMap<String, Vec<u32>> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let Some(up) = seconds_up() else {
        return found;
    };
    let log = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(Path::new("/dev/kmsg"));
    let Ok(mut log) = log else { return found };
    // No record is longer, and each read gives one.
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                if let Some((device, xid)) = fault(&text, up) {
                    let of_device = found.entry(device).or_default();
                    if !of_device.contains(&xid) {
                        of_device.push(xid);
                    }
                }
            }
            // Overwritten before it was read: the next read goes on behind it.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            Err(_) => break,
        }
    }
    found
}

fn seconds_up() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    text.split('.').next()?.parse().ok()
}

/// `4,1234,987654321,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', …` of the last day; `up` is
/// the machine's age in seconds, as the third field is in microseconds.
fn fault(record: &str, up: u64) -> Option<(String, u32)> {
    const DAY: u64 = 24 * 3600;
    let (head, text) = record.split_once(';')?;
    let micros: u64 = head.split(',').nth(2)?.parse().ok()?;
    if up.saturating_sub(micros / 1_000_000) > DAY {
        return None;
    }
    let (_, rest) = text.split_once("Xid (PCI:")?;
    let (device, rest) = rest.split_once("): ")?;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let xid: u32 = rest[..digits].parse().ok()?;
    FAULTS
        .iter()
        .any(|(known, _)| *known == xid)
        .then(|| (address(device), xid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_the_kernels_log() {
        const HOUR: u64 = 3600;
        for (record, up, expected) in [
            (
                "4,900,7200000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n",
                3 * HOUR,
                Some((":3b:00", 79)),
            ),
            (
                "4,900,7200000000,-;NVRM: Xid (PCI:0001:3b:00): 95, pid=7, Uncontained\n",
                3 * HOUR,
                Some(("1:3b:00", 95)),
            ),
            // Two days ago.
            (
                "4,900,7200000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=7\n",
                50 * HOUR,
                None,
            ),
            // A program's own fault.
            (
                "4,900,7200000000,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=7, MMU Fault\n",
                3 * HOUR,
                None,
            ),
            ("6,1,1,-;Linux version 6\n", 0, None),
            ("", 0, None),
        ] {
            let expected = expected.map(|(address, xid): (&str, u32)| (address.to_owned(), xid));
            assert_eq!(fault(record, up), expected, "{record}");
        }
        assert_eq!(address("00000000:3B:00.0"), ":3b:00");
    }
}
