//! The command line of the task's script, and what it finds on `PYTHONPATH`. Pure but for one
//! look: whether the entry point names a file.

use std::path::{Path, PathBuf};

use super::tools::Language;
use super::{PythonError, Variables};

/// What the command is made from.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `script.binary`
    pub binary: &'a str,
    /// The environment's interpreter; `None` where there is none (shell tasks).
    pub python: Option<&'a Path>,
    /// The repository's root or the code folder; `None` counts as the working folder.
    pub root: Option<&'a Path>,
    pub working_dir: &'a Path,
    pub entry_point: &'a str,
    /// How often `-O` was given.
    pub optimize: u8,
    /// The environment that the script will have: `$NAME` in `-m` entry points, `$SHELL`.
    pub job_env: &'a Variables,
    /// `agent.force_git_root_python_path`
    pub force_git_root_python_path: bool,
}

/// How the script is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCommand {
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Folders for `PYTHONPATH`, joined by `:`, to stand behind an inherited one.
    pub python_path: String,
    /// For the log: `[folder]$ command`.
    pub shown: String,
}

/// The command of a task.
pub fn command(request: &Request<'_>) -> Result<JobCommand, PythonError> {
    let entry_point = request.entry_point.trim();
    if entry_point.is_empty() {
        return Err(PythonError::NoEntryPoint);
    }
    let language = Language::of(request.binary);
    let words = entry_words(language, entry_point, request);
    let (program, mut args) = match language {
        Language::Shell => (shell(request.job_env), Vec::new()),
        Language::Python => {
            let mut args = vec!["-u".to_owned()];
            match request.optimize {
                0 => {}
                1 => args.push("-O".into()),
                _ => args.push("-OO".into()),
            }
            let python = request.python.ok_or_else(|| PythonError::NoInterpreter {
                wanted: "Python 3".into(),
                tried: "None was looked for.".into(),
            })?;
            (python.to_owned(), args)
        }
    };
    args.extend(words);
    let quoted: Vec<String> = std::iter::once(program.to_string_lossy().into_owned())
        .chain(args.iter().cloned())
        .map(|word| {
            shlex::try_quote(&word).map_or_else(|_| word.clone(), std::borrow::Cow::into_owned)
        })
        .collect();
    Ok(JobCommand {
        program,
        args,
        python_path: python_path(request, entry_point),
        shown: format!("[{}]$ {}", request.working_dir.display(), quoted.join(" ")),
    })
}

/// What stands behind the interpreter.
fn entry_words(language: Language, entry_point: &str, request: &Request<'_>) -> Vec<String> {
    let one = || vec![entry_point.to_owned()];
    let first = entry_point.split_whitespace().next().unwrap_or_default();
    match (language, first) {
        (Language::Python, "-m") => {
            shlex::split(&expand(entry_point, request.job_env)).unwrap_or_else(one)
        }
        (Language::Shell, "-c") => {
            let script = entry_point.strip_prefix("-c").unwrap_or_default().trim();
            vec!["-c".into(), shell_script(script)]
        }
        _ if request.working_dir.join(entry_point).is_file() => one(),
        _ => shlex::split(entry_point).unwrap_or_else(one),
    }
}

/// The script of `bash -c`: quotes around the whole of it go, all within it stays.
fn shell_script(text: &str) -> String {
    match shlex::split(text).as_deref() {
        Some([whole]) => whole.clone(),
        _ => text.to_owned(),
    }
}

fn shell(env: &Variables) -> PathBuf {
    match env.get("SHELL").filter(|shell| !shell.is_empty()) {
        Some(shell) => PathBuf::from(shell),
        None if Path::new("/bin/bash").exists() => "/bin/bash".into(),
        None => "/bin/sh".into(),
    }
}

/// `$NAME` and `${NAME}` replaced; a name that is not set stays as it is written.
fn expand(text: &str, env: &Variables) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, tail) = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            Some((name, tail)) => (name, tail),
            None => {
                let end = after
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(after.len());
                after.split_at(end)
            }
        };
        match env.get(name) {
            Some(value) => {
                expanded.push_str(value);
                rest = tail;
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded + rest
}

/// The working folder and the entry point's own; not the interpreter's folders, which would
/// reach every other Python that the script starts.
fn python_path(request: &Request<'_>, entry_point: &str) -> String {
    let mut folders: Vec<String> = Vec::new();
    let mut add = |folder: &Path| {
        let folder = folder.to_string_lossy().trim_end_matches('/').to_owned();
        if !folder.is_empty() && !folders.contains(&folder) {
            folders.push(folder);
        }
    };
    if request.force_git_root_python_path {
        add(request.root.unwrap_or(request.working_dir));
    } else {
        add(request.working_dir);
        let file = match request.working_dir.join(entry_point).is_file() {
            true => Some(entry_point.to_owned()),
            false => shlex::split(entry_point).and_then(|words| words.into_iter().next()),
        };
        if let Some(file) = file.filter(|file| !file.starts_with('-'))
            && let Some(folder) = Path::new(&file).parent()
        {
            let folder: PathBuf = request.working_dir.join(folder).components().collect();
            add(&folder);
        }
    }
    for name in [
        "CLEARML_AGENT_EXTRA_PYTHON_PATH",
        "TRAINS_AGENT_EXTRA_PYTHON_PATH",
    ] {
        if let Some(extra) = request.job_env.get(name).filter(|extra| !extra.is_empty()) {
            extra.split(':').for_each(|folder| add(Path::new(folder)));
            break;
        }
    }
    folders.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Variables {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn entry_points() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for file in ["train.py", "my script.py", "sub/run.py", "it's.py"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let job_env = env(&[("SHELL", "/bin/bash"), ("N", "2"), ("A", "x y")]);
        type Case = (&'static str, &'static str, u8, &'static [&'static str]);
        let cases: [Case; 15] = [
            (
                "python3.11",
                "train.py",
                0,
                &["/v/python", "-u", "train.py"],
            ),
            ("", "train.py", 1, &["/v/python", "-u", "-O", "train.py"]),
            (
                "python",
                "train.py",
                3,
                &["/v/python", "-u", "-OO", "train.py"],
            ),
            (
                "python",
                "my script.py",
                0,
                &["/v/python", "-u", "my script.py"],
            ),
            ("python", "it's.py", 0, &["/v/python", "-u", "it's.py"]),
            (
                "python",
                "train.py --a 'b c'",
                0,
                &["/v/python", "-u", "train.py", "--a", "b c"],
            ),
            (
                "python",
                "'my script.py' --a",
                0,
                &["/v/python", "-u", "my script.py", "--a"],
            ),
            (
                "python",
                "train.py --p $N",
                0,
                &["/v/python", "-u", "train.py", "--p", "$N"],
            ),
            (
                "python",
                "-m pkg.mod --n $N ${N}x $NO",
                0,
                &["/v/python", "-u", "-m", "pkg.mod", "--n", "2", "2x", "$NO"],
            ),
            (
                "python",
                "-m pkg 'a b",
                0,
                &["/v/python", "-u", "-m pkg 'a b"],
            ),
            (
                "python",
                "sub/run.py",
                0,
                &["/v/python", "-u", "sub/run.py"],
            ),
            ("weird", "train.py", 0, &["/v/python", "-u", "train.py"]),
            ("bash", "run.sh a b", 0, &["/bin/bash", "run.sh", "a", "b"]),
            (
                "/bin/sh",
                "-c \"echo 'a  b'; exit 3\"",
                2,
                &["/bin/bash", "-c", "echo 'a  b'; exit 3"],
            ),
            (
                "bash",
                "-c echo 'a  b' | cat",
                0,
                &["/bin/bash", "-c", "echo 'a  b' | cat"],
            ),
        ];
        for (binary, entry_point, optimize, expected) in cases {
            let command = command(&Request {
                binary,
                python: Some(Path::new("/v/python")),
                root: None,
                working_dir: dir.path(),
                entry_point,
                optimize,
                job_env: &job_env,
                force_git_root_python_path: false,
            })
            .unwrap();
            let mut words = vec![command.program.to_string_lossy().into_owned()];
            words.extend(command.args);
            assert_eq!(words, expected, "{binary} {entry_point}");
        }
    }

    fn of(entry_point: &str, job_env: &Variables, force_root: bool) -> JobCommand {
        command(&Request {
            binary: "python3",
            python: Some(Path::new("/v/python")),
            root: Some(Path::new("/repo")),
            working_dir: Path::new("/repo/work"),
            entry_point,
            optimize: 0,
            job_env,
            force_git_root_python_path: force_root,
        })
        .unwrap()
    }

    #[test]
    fn the_python_path() {
        let none = env(&[]);
        let extra = env(&[("CLEARML_AGENT_EXTRA_PYTHON_PATH", "/x:/y")]);
        for (entry_point, job_env, force_root, expected) in [
            ("train.py", &none, false, "/repo/work"),
            (
                "./sub/train.py --a",
                &none,
                false,
                "/repo/work:/repo/work/sub",
            ),
            ("-m pkg.mod a/b", &none, false, "/repo/work"),
            ("sub/train.py", &none, true, "/repo"),
            (
                "sub/train.py",
                &extra,
                false,
                "/repo/work:/repo/work/sub:/x:/y",
            ),
        ] {
            let command = of(entry_point, job_env, force_root);
            assert_eq!(command.python_path, expected, "{entry_point}");
        }
    }

    #[test]
    fn what_is_shown_can_be_pasted_into_a_shell() {
        let shown = of("train.py --a 'b c'", &env(&[]), false).shown;
        assert_eq!(shown, "[/repo/work]$ /v/python -u train.py --a 'b c'");
    }

    #[test]
    fn no_entry_point_is_an_error() {
        let job_env = env(&[]);
        let request = Request {
            binary: "python3",
            python: Some(Path::new("/v/python")),
            root: None,
            working_dir: Path::new("/w"),
            entry_point: " ",
            optimize: 0,
            job_env: &job_env,
            force_git_root_python_path: false,
        };
        assert_eq!(command(&request).unwrap_err(), PythonError::NoEntryPoint);
    }
}
