//! One Python interpreter: what it is, found out by running it once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Variables;
use super::known::Question;
use super::tool;

/// An interpreter that does not answer within this time is passed over.
const PATIENCE: Duration = Duration::from_secs(15);

/// `3`, `3.11` or `3.11.7`. Compared as numbers: 3.1 is not 3.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub major: u32,
    pub minor: Option<u32>,
    /// Preferred, and said where it is another one; any patch of the minor version will do.
    pub patch: Option<u32>,
}

impl Version {
    /// From `3`, `3.11` or `3.11.7`; a third part that is no number does not matter.
    pub fn parse(text: &str) -> Option<Version> {
        let mut parts = text.trim().split('.');
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        };
        let major = number(parts.next()?)?;
        let minor = match parts.next() {
            None | Some("") => None,
            Some(part) => Some(number(part)?),
        };
        let patch = parts.next().and_then(number);
        Some(Version {
            major,
            minor,
            patch,
        })
    }

    /// From a program's name: `python3.11` → 3.11, `python3` → 3; `python` and all else → none.
    pub fn of_program(program: &str) -> Option<Version> {
        let name = program.rsplit('/').next()?;
        Version::parse(name.strip_prefix("python")?)
    }

    /// Whether an interpreter of this version is what `self` asks for.
    pub fn accepts(self, found: (u32, u32, u32)) -> bool {
        self.major == found.0 && self.minor.is_none_or(|minor| minor == found.1)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}.{minor}", self.major),
            None => write!(f, "{}", self.major),
        }
    }
}

/// A working interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// As it calls itself.
    pub executable: PathBuf,
    /// The one that a new environment is made from: not itself in a virtual environment, and no
    /// symbolic link, because Python finds its library next to the real file.
    pub base_executable: PathBuf,
    pub version: (u32, u32, u32),
    /// `cpython`, `pypy`, …
    pub implementation: String,
    /// `Linux x86_64 glibc 2.36`: what a binary module depends on.
    pub platform: String,
    /// Built without the global lock: its library folder is named `python3.13t`.
    pub free_threaded: bool,
    /// It is in a virtual environment itself.
    pub in_venv: bool,
    pub standard_library: PathBuf,
    /// Where its packages are.
    pub site_packages: Vec<PathBuf>,
}

impl Interpreter {
    /// `3.11`
    pub fn minor_version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// `3.11.7`
    pub fn full_version(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }

    /// The folder of its library below a prefix: `lib/python3.11`.
    pub fn library_folder(&self) -> String {
        let suffix = if self.free_threaded { "t" } else { "" };
        format!("lib/python{}{suffix}", self.minor_version())
    }
}

#[cfg(test)]
impl Interpreter {
    /// One for tests of what is decided by it.
    pub fn sample() -> Interpreter {
        Interpreter {
            executable: "/usr/bin/python3".into(),
            base_executable: "/usr/bin/python3.11".into(),
            version: (3, 11, 7),
            implementation: "cpython".into(),
            platform: "Linux x86_64 glibc 2.36".into(),
            free_threaded: false,
            in_venv: false,
            standard_library: "/usr/lib/python3.11".into(),
            site_packages: Vec::new(),
        }
    }
}

/// What is printed starts with this line: a site's own start-up code may print more.
const MARK: &str = "--interpreter--";

const PROBE: &str = r#"
import sys, os
v = sys.version_info
b = getattr(sys, "_base_executable", None) or sys.executable
p = getattr(sys, "base_prefix", sys.prefix)
if p != sys.prefix and os.path.dirname(b) == os.path.dirname(sys.executable):
    b = os.path.join(p, "bin", "python%d.%d" % v[:2])
try:
    import site
    s = site.getsitepackages()
except Exception:
    s = []
i = getattr(sys, "implementation", None)
try:
    c = os.confstr("CS_GNU_LIBC_VERSION")
except Exception:
    c = "other libc"
u = os.uname()
print("--interpreter--")
for x in ["%d.%d.%d" % v[:3], i.name if i else "python", "%s %s %s" % (u[0], u[4], c), "t" in getattr(sys, "abiflags", ""),
          p != sys.prefix, sys.executable, os.path.realpath(b), os.path.dirname(os.__file__)] + s:
    print(x)
"#;

/// Asks `program` what it is. `cache`: where answers are kept. The error is the reason in a few words.
pub async fn probe(
    program: &Path,
    inherited: &Variables,
    cache: &Path,
) -> Result<Interpreter, String> {
    let question = Question {
        program,
        args: &["-E", "-s", "-c", PROBE],
        env: tool::environment(inherited, Variables::new()),
        patience: PATIENCE,
        cache,
    };
    parse(&question.ask().await?).ok_or_else(|| "it is no Python".into())
}

fn parse(output: &str) -> Option<Interpreter> {
    let mut lines = output.lines().skip_while(|line| *line != MARK).skip(1);
    let mut numbers = lines.next()?.split('.').map(|n| n.parse().ok());
    let version = (numbers.next()??, numbers.next()??, numbers.next()??);
    let implementation = lines.next()?.to_owned();
    let platform = lines.next()?.to_owned();
    let free_threaded = lines.next()? == "True";
    let in_venv = lines.next()? == "True";
    Some(Interpreter {
        version,
        implementation,
        platform,
        free_threaded,
        in_venv,
        executable: lines.next()?.into(),
        base_executable: lines.next()?.into(),
        standard_library: lines.next()?.into(),
        site_packages: lines.map(PathBuf::from).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for (program, version) in [
            ("python3.10", Some((3, Some(10)))),
            ("python3.1", Some((3, Some(1)))),
            ("/usr/bin/python3.9", Some((3, Some(9)))),
            ("python3", Some((3, None))),
            ("python2.7", Some((2, Some(7)))),
            ("python", None),
            ("python3-dbg", None),
            ("/bin/bash", None),
            ("", None),
        ] {
            let version = version.map(|(major, minor)| Version {
                major,
                minor,
                patch: None,
            });
            assert_eq!(Version::of_program(program), version, "{program}");
        }
        assert_eq!(Version::of_program("python3.11.7").unwrap().patch, Some(7));
        let asked = Version::parse("3.1").unwrap();
        assert!(asked.accepts((3, 1, 5)));
        assert!(!asked.accepts((3, 10, 0)));
        assert!(Version::parse("3").unwrap().accepts((3, 12, 0)));
        assert!(!Version::parse("3").unwrap().accepts((2, 7, 0)));
    }

    #[test]
    fn the_answer_is_read_after_the_mark() {
        let answer = "hello from sitecustomize\n--interpreter--\n3.13.0\ncpython\nLinux x86_64 glibc 2.36\nTrue\nFalse\n\
                      /p/bin/python3\n/p/bin/python3.13t\n/p/lib/python3.13t\n/p/site\n/q/site\n";
        let found = parse(answer).unwrap();
        assert_eq!(found.full_version(), "3.13.0");
        assert_eq!(found.library_folder(), "lib/python3.13t");
        assert_eq!(found.site_packages.len(), 2);
        assert_eq!(parse("Python 3.11"), None);
    }

    #[tokio::test]
    async fn what_fails_says_why() {
        let (env, cache) = (Variables::new(), tempfile::tempdir().unwrap());
        let cache = cache.path();
        let reason = probe(Path::new("/bin/false"), &env, cache)
            .await
            .unwrap_err();
        assert_eq!(reason, "exit code 1");
        let reason = probe(Path::new("/bin/echo"), &env, cache)
            .await
            .unwrap_err();
        assert_eq!(reason, "it is no Python");
        let reason = probe(Path::new("/nowhere/python"), &env, cache)
            .await
            .unwrap_err();
        assert!(reason.starts_with("can't be run"), "{reason}");
    }
}
