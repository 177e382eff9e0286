//! What this process uses of its machine: memory, processor time, descriptors.
//!
//! Knows how the system tells; refuses to know who asks. Nothing is asked before somebody does.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Where a process finds its own descriptors, on Linux and elsewhere.
const DESCRIPTORS: [&str; 2] = ["/proc/self/fd", "/dev/fd"];

/// What is used now. What the system does not tell is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Memory that is in RAM, in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// Processor time since the start of the process, of all threads.
    pub(crate) cpu: Duration,
    /// Open descriptors.
    pub(crate) descriptors: Option<u64>,
    /// How many there may be.
    pub(crate) descriptors_max: Option<u64>,
}

impl Usage {
    /// Asks the system.
    pub(crate) fn now() -> Usage {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
        let nanoseconds = u32::try_from(cpu.tv_nsec).unwrap_or(0);
        Usage {
            resident_bytes: resident_bytes(),
            cpu: Duration::new(seconds, nanoseconds),
            descriptors: descriptors(),
            descriptors_max: getrlimit(Resource::Nofile).current,
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

fn descriptors() -> Option<u64> {
    let entries = DESCRIPTORS.iter().find_map(|place| fs::read_dir(place).ok())?;
    // One of them is this very question's.
    Some((entries.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_used_grows_with_what_is_done() {
        let before = Usage::now();
        assert!(before.resident_bytes.unwrap() > 1 << 20, "{before:?}");
        // Many, because other tests open and close some, too.
        let held: Vec<_> = (0..300).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let mut after = Usage::now();
        let more = after.descriptors.unwrap().saturating_sub(before.descriptors.unwrap());
        assert!(more >= held.len() as u64 / 3, "{before:?} {after:?}");
        assert!(after.descriptors_max >= after.descriptors, "{after:?}");
        while after.cpu <= before.cpu {
            after = Usage::now();
        }
    }
}
