//! What a failed program's last lines say about why it failed.
//!
//! Only what ended the program counts: of a Python traceback the last exception, and what it was
//! raised from. An earlier complaint that was overcome is not the cause. Pure.

use std::path::PathBuf;
use std::sync::LazyLock;

use regex::Regex;

/// A cause that a program can tell of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It asked for memory and got none.
    NoMemory,
    /// The same on the GPU.
    NoGpuMemory,
    NoSpace,
    /// Of the user's or the project's share of a disk.
    NoQuota,
    /// A file could not be written, for a reason that is not said.
    NotWritten,
    NoSharedMemory,
    /// NCCL, Gloo: something between the processes of a distributed training.
    Collective,
    /// The GPU or its driver does not work.
    GpuUnusable,
}

/// The first that matches counts. Shapes, not words: a plain log line that mentions a cause (and that
/// the program went on) does not count.
#[rustfmt::skip]
const PATTERNS: [(Said, &str); 24] = [
    (Said::NoSharedMemory, r"insufficient shared memory \(shm\)"),
    (Said::NoSharedMemory, r"(?:unable to (?:write to file|open shared memory object|resize file|mmap) </|unable to allocate shared memory)"),
    (Said::NoGpuMemory, r"(?:Error|Exception|error|what\(\)): .*\b(?:CUDA|HIP|XPU|MPS)(?: backend)?(?: error:)? out of memory"),
    (Said::NoGpuMemory, r"\b(?:torch|cupy|numba)\S*OutOfMemoryError\b"),
    (Said::NoGpuMemory, r"(?:Error|Exception|error): .*(?:CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation)"),
    (Said::NoGpuMemory, r"\bXlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"),
    (Said::NoGpuMemory, r"\bResourceExhaustedError\b.*\bOOM when allocating"),
    (Said::NoGpuMemory, r"^CUDA error: out of memory"),
    (Said::GpuUnusable, r"(?:Error|error|what\(\)): .*(?:uncorrectable (?:NVLink |ECC )*error|hardware error|GPU has fallen off the bus|GPU is lost)"),
    (Said::GpuUnusable, r"(?:Error|error|what\(\)): .*(?:no CUDA-capable device is detected|all CUDA-capable devices are busy|CUDA driver version is insufficient|system not yet initialized|Found no NVIDIA driver|The NVIDIA driver on your system is too old|No CUDA GPUs are available)"),
    (Said::NoMemory, r"^(?:[\w.]*\.)?_?\w*MemoryError(?:$|:)"),
    (Said::NoMemory, r"(?:\[Errno 12\]|[:)] Cannot allocate memory|\(os error 12\)|std::bad_alloc|java\.lang\.OutOfMemoryError)"),
    (Said::NoMemory, r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"),
    (Said::NoMemory, r"^(?:memory allocation of \d+ bytes failed|FATAL ERROR: .*heap out of memory|fatal error: out of memory)"),
    (Said::NoSpace, r"(?:\[Errno 28\]|: No space left on device|No space left on device \(28\)|\(os error 28\)|\bENOSPC\b|database or disk is full)"),
    (Said::NoQuota, r"(?:\[Errno 122\]|: Disk quota exceeded|\(os error 122\)|\bEDQUOT\b)"),
    (Said::NotWritten, r"(?:Error|error): .*(?:PytorchStreamWriter failed writing|unexpected pos \d+ vs|file write failed|[Ww]rite (?:error|failed)|[Ff]ailed to write)"),
    (Said::Collective, r"Watchdog caught collective operation timeout"),
    (Said::Collective, r"\b(?:DistBackendError|DistNetworkError|DistStoreError)\b"),
    (Said::Collective, r"(?:Error|error): .*\bNCCL (?:error|failure|communicator was aborted)"),
    (Said::Collective, r"\bncclRemoteError\b"),
    (Said::Collective, r"(?:Error|error): .*\[\S*gloo/\S+\] .*(?:Connection|[Tt]imed? ?out)"),
    (Said::Collective, r"Some NCCL operations have failed or timed out"),
    (Said::Collective, r"RuntimeError: Timed out initializing process group"),
];

static COMPILED: LazyLock<Vec<(Said, Regex)>> = LazyLock::new(|| {
    let compile = |(said, pattern): &(Said, &str)| Some((*said, Regex::new(pattern).ok()?));
    PATTERNS.iter().filter_map(compile).collect()
});

/// An exception's last line, and that of one which only reports another process' failure.
static EXCEPTION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Fault)\b").ok()
});
const REPORTS_ANOTHER: [&str; 4] = [
    "ChildFailedError",
    "CalledProcessError",
    "ProcessRaisedException",
    "DataLoader worker",
];
/// Python's words between a traceback and the one that came of it.
const CHAINED: [&str; 2] = [
    "During handling of the above exception",
    "The above exception was the direct cause",
];
const TRACEBACK: &str = "Traceback (most recent call last)";

/// The cause that the last lines name, and the line that does. Give the last hundred or so.
pub fn cause<'a>(lines: &[&'a str]) -> Option<(Said, &'a str)> {
    // Once an exception is found that is none of ours, only what it was raised from is of interest.
    let mut other = false;
    for (index, line) in lines.iter().enumerate().rev() {
        let line = without_rank(line.trim_end());
        if other {
            if line.starts_with(TRACEBACK) {
                let before = lines[..index].iter().rev().map(|line| without_rank(line));
                let told = before.map(str::trim).find(|line| !line.is_empty());
                if !told.is_some_and(|told| CHAINED.iter().any(|words| told.starts_with(words))) {
                    return None;
                }
                other = false;
            }
            continue;
        }
        if let Some((said, _)) = COMPILED.iter().find(|(_, regex)| regex.is_match(line)) {
            return Some((*said, line));
        }
        let exception = EXCEPTION.as_ref().is_some_and(|regex| regex.is_match(line));
        other = exception && !REPORTS_ANOTHER.iter().any(|words| line.contains(words));
    }
    None
}

/// torchrun and the like put `[rank0]: ` or `[default0]:` before each line.
fn without_rank(line: &str) -> &str {
    let rest = line
        .strip_prefix("[rank")
        .or_else(|| line.strip_prefix("[default"));
    rest.and_then(|rest| rest.split_once("]:"))
        .filter(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()))
        .map_or(line, |(_, line)| line.strip_prefix(' ').unwrap_or(line))
}

/// Whether the lines tell that a process which the program had started was killed by SIGKILL.
pub fn tells_of_a_kill(lines: &[&str]) -> bool {
    const WORDS: [&str; 9] = [
        "SIGKILL",
        "(Signal 9)",
        "signal 9",
        "exitcode: -9",
        "exit code -9",
        "is killed by signal: Killed",
        "terminated abruptly",
        "exited unexpectedly",
        "returned non-zero exit status 137",
    ];
    lines.iter().any(|line| {
        // A shell's word for a child that was killed: `x.sh: line 3: 42 Killed   python a.py`.
        let shell = line.split_once(" Killed").is_some_and(|(before, after)| {
            before.ends_with(|last: char| last.is_ascii_digit())
                && (after.is_empty() || after.starts_with("  "))
        });
        shell || line.trim_end() == "Killed" || WORDS.iter().any(|words| line.contains(words))
    })
}

/// Files that a line names in quotes.
pub fn files_named(line: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for quote in ['\'', '"'] {
        let pieces = line.split(quote).skip(1).step_by(2);
        files.extend(
            pieces
                .filter(|piece| piece.contains('/'))
                .map(PathBuf::from),
        );
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_patterns_are_regular_expressions() {
        assert_eq!(COMPILED.len(), PATTERNS.len());
        assert!(EXCEPTION.is_some());
    }

    #[test]
    fn one_line_says_it() {
        for (line, expected) in [
            ("MemoryError", Some(Said::NoMemory)),
            (
                "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 TiB for an array with shape (1,)",
                Some(Said::NoMemory),
            ),
            (
                "OSError: [Errno 12] Cannot allocate memory",
                Some(Said::NoMemory),
            ),
            ("bash: fork: retry: Resource temporarily unavailable", None),
            ("bash: fork: Cannot allocate memory", Some(Said::NoMemory)),
            (
                "terminate called after throwing an instance of 'std::bad_alloc'",
                Some(Said::NoMemory),
            ),
            (
                "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000000000 bytes. Error code 12 (Cannot allocate memory)",
                Some(Said::NoMemory),
            ),
            (
                "memory allocation of 4000000 bytes failed",
                Some(Said::NoMemory),
            ),
            (
                "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.",
                Some(Said::NoGpuMemory),
            ),
            (
                "RuntimeError: CUDA out of memory. Tried to allocate 2.00 MiB (GPU 0; 7.79 GiB total capacity)",
                Some(Said::NoGpuMemory),
            ),
            (
                "RuntimeError: CUDA error: out of memory",
                Some(Said::NoGpuMemory),
            ),
            (
                "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.",
                Some(Said::NoGpuMemory),
            ),
            ("CUDA out of memory, trying a smaller batch", None),
            (
                "RuntimeError: CUDA error: uncorrectable ECC error encountered",
                Some(Said::GpuUnusable),
            ),
            (
                "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
                Some(Said::GpuUnusable),
            ),
            (
                "OSError: [Errno 28] No space left on device: '/scratch/a.pt'",
                Some(Said::NoSpace),
            ),
            (
                "cp: error writing 'x': No space left on device",
                Some(Said::NoSpace),
            ),
            (
                "sqlite3.OperationalError: database or disk is full",
                Some(Said::NoSpace),
            ),
            (
                "OSError: [Errno 122] Disk quota exceeded",
                Some(Said::NoQuota),
            ),
            (
                "RuntimeError: [enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0",
                Some(Said::NotWritten),
            ),
            (
                "RuntimeError: DataLoader worker (pid 42) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",
                None,
            ),
            (
                "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).",
                Some(Said::NoSharedMemory),
            ),
            (
                "RuntimeError: unable to write to file </torch_42_1>: No space left on device (28)",
                Some(Said::NoSharedMemory),
            ),
            (
                "[rank0]:[E1124 ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)",
                Some(Said::Collective),
            ),
            (
                "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited",
                Some(Said::Collective),
            ),
            ("ValueError: x", None),
            ("", None),
        ] {
            assert_eq!(cause(&[line]).map(|(said, _)| said), expected, "{line}");
        }
    }

    #[test]
    fn only_what_ended_the_program_counts() {
        let no_space = "OSError: [Errno 28] No space left on device";
        let chained = "During handling of the above exception, another exception occurred:";
        for (what, lines, expected) in [
            (
                "words after the exception",
                &[TRACEBACK, "  File x", no_space, "Exception ignored in: <x>"][..],
                Some(Said::NoSpace),
            ),
            (
                "an earlier complaint that was overcome",
                &[
                    no_space,
                    "going on",
                    TRACEBACK,
                    "  File x",
                    "ValueError: shape",
                ],
                None,
            ),
            (
                "an exception out of another",
                &[
                    TRACEBACK,
                    "  File x",
                    no_space,
                    "",
                    chained,
                    "",
                    TRACEBACK,
                    "  File x",
                    "RuntimeError: saving failed",
                ],
                Some(Said::NoSpace),
            ),
            (
                "the same behind a rank's prefix",
                &[
                    "[rank0]: Traceback (most recent call last):",
                    "[rank0]: MemoryError",
                    "[rank0]: ",
                    "[rank0]: The above exception was the direct cause of the following exception:",
                    "[rank0]: ",
                    "[rank0]: Traceback (most recent call last):",
                    "[rank0]: ValueError: x",
                ],
                Some(Said::NoMemory),
            ),
            (
                "torchrun's own exception",
                &[
                    TRACEBACK,
                    "torch.OutOfMemoryError: CUDA out of memory. Tried",
                    TRACEBACK,
                    "  File run.py",
                    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
                    "====",
                ],
                Some(Said::NoGpuMemory),
            ),
            ("nothing", &[], None),
        ] {
            assert_eq!(cause(lines).map(|(said, _)| said), expected, "{what}");
        }
    }

    #[test]
    fn killed_processes_that_are_told_of() {
        for (line, told) in [
            ("Killed", true),
            (
                "run.sh: line 3:    42 Killed                  python a.py",
                true,
            ),
            (
                "subprocess.CalledProcessError: Command 'x' died with <Signals.SIGKILL: 9>.",
                true,
            ),
            (
                "RuntimeError: DataLoader worker (pid 42) is killed by signal: Killed.",
                true,
            ),
            (
                "A process in the process pool was terminated abruptly",
                true,
            ),
            ("  exitcode: -9 (pid: 42)", true),
            ("3 Killed the process by hand", false),
            ("Killed it, great result", false),
        ] {
            assert_eq!(tells_of_a_kill(&[line]), told, "{line}");
        }
    }

    #[test]
    fn files_in_quotes() {
        let files = files_named("OSError: [Errno 28] No space: '/data/a b.pt' -> \"c/d\" 'x'");
        assert_eq!(files, [PathBuf::from("/data/a b.pt"), "c/d".into()]);
    }
}
