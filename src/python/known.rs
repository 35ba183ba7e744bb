//! What interpreters and uv said of themselves when they were last asked: starting a Python only
//! to hear its version costs a run more than all else that it does before its script. An answer
//! counts for as long as the program's file is the same.

use std::fs::{self, File, TryLockError};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::Variables;
use super::cache::tree::write_whole;

/// A program to ask, with all that its answer depends on.
pub(super) struct Question<'q> {
    pub program: &'q Path,
    pub args: &'q [&'q str],
    pub env: Variables,
    pub patience: Duration,
    /// Where answers are kept.
    pub cache: &'q Path,
}

impl Question<'_> {
    /// What the program prints. The error is the reason in a few words.
    pub(super) async fn ask(&self) -> Result<String, String> {
        let Some((path, stamp)) = self.kept() else {
            return self.run().await;
        };
        let recall = || {
            let text = fs::read_to_string(&path).ok()?;
            text.strip_prefix(stamp.as_str()).map(str::to_owned)
        };
        if let Some(answer) = recall() {
            return Ok(answer);
        }
        let turn = Turn::wait(path.with_extension("lock"), recall).await;
        if let Some(answer) = recall() {
            return Ok(answer);
        }
        let answer = self.run().await?;
        if let Err(error) = write_whole(&path, &format!("{stamp}{answer}")) {
            tracing::debug!(%error, "the next run asks {} again", self.program.display());
        }
        drop(turn);
        Ok(answer)
    }

    async fn run(&self) -> Result<String, String> {
        let mut command = tokio::process::Command::new(self.program);
        command
            .args(self.args)
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let output = match tokio::time::timeout(self.patience, command.output()).await {
            Err(_) => return Err(format!("no answer within {} s", self.patience.as_secs())),
            Ok(Err(cause)) => return Err(format!("can't be run: {cause}")),
            Ok(Ok(output)) => output,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().find(|l| !l.trim().is_empty()).unwrap_or("");
            return Err(match output.status.code() {
                Some(code) => format!("exit code {code} {said}").trim().to_owned(),
                None => format!("killed by a signal {said}").trim().to_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The file for the answer and its first line; `None` where an answer may be another one next
    /// time though the file is the same: a script decides for itself what it starts (pyenv's shims).
    fn kept(&self) -> Option<(PathBuf, String)> {
        let real = fs::canonicalize(self.program).ok()?;
        let mut magic = [0; 4];
        File::open(&real).ok()?.read_exact(&mut magic).ok()?;
        if magic != *b"\x7fELF" {
            return None;
        }
        let stamp_of = |path: &Path| {
            let meta = fs::metadata(path).ok()?;
            let changed = (
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            );
            Some(format!("{} {} {changed:?}", path.display(), meta.len()))
        };
        // A virtual environment is one by this file beside its Python.
        let venv = self.program.parent()?.parent()?.join("pyvenv.cfg");
        // The C library is named in the answer, and comes with the system's release.
        let [venv, release] =
            [&venv, Path::new("/etc/os-release")].map(|path| stamp_of(path).unwrap_or_default());
        let stamp = format!("{} | {venv} | {release}\n", stamp_of(&real)?);
        let mut hash = Sha256::new();
        for part in [self.program.as_os_str().as_encoded_bytes()]
            .into_iter()
            .chain(self.args.iter().map(|arg| arg.as_bytes()))
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let name: String = hash
            .finalize()
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect();
        Some((self.cache.join("known-programs").join(name), stamp))
    }
}

/// Of many runs that start in one moment one asks, and the others hear its answer. Only time rests on it:
/// where it cannot be had, each asks for itself.
struct Turn {
    path: PathBuf,
    _lock: File,
}

impl Turn {
    /// An answer takes less.
    const LIMIT: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(5);

    async fn wait(path: PathBuf, answer: impl Fn() -> Option<String>) -> Option<Turn> {
        fs::create_dir_all(path.parent()?).ok()?;
        let lock = File::create(&path).ok()?;
        let begin = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Some(Turn { path, _lock: lock }),
                Err(TryLockError::Error(_)) => return None,
                Err(TryLockError::WouldBlock) => {}
            }
            if answer().is_some() || begin.elapsed() >= Self::LIMIT {
                return None;
            }
            tokio::time::sleep(Self::PAUSE).await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The answer is there, or nobody can write one.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writing is left to another process: a program that a fork of this one has open for writing can't
    /// be run.
    fn shell(line: &str) {
        let status = std::process::Command::new("sh").args(["-c", line]).status();
        assert!(status.unwrap().success());
    }

    async fn answer(program: &Path, cache: &Path) -> String {
        let question = Question {
            program,
            args: &["asked"],
            env: Variables::new(),
            patience: Duration::from_secs(60),
            cache,
        };
        question.ask().await.unwrap()
    }

    fn kept(cache: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(cache.join("known-programs"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    #[tokio::test]
    async fn a_program_is_asked_once_and_again_when_its_file_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, cache) = (dir.path().join("env/bin"), dir.path().join("cache"));
        fs::create_dir_all(&bin).unwrap();
        let program = bin.join("python3");
        shell(&format!("cp /bin/echo {}", program.display()));
        assert_eq!(answer(&program, &cache).await, "asked\n");

        // An answer that only the file can have given.
        let [file] = kept(&cache).try_into().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("asked", "kept")).unwrap();
        assert_eq!(answer(&program, &cache).await, "kept\n");

        shell(&format!("touch -d @0 {}", program.display()));
        assert_eq!(answer(&program, &cache).await, "asked\n");
        fs::write(
            &file,
            fs::read_to_string(&file).unwrap().replace("asked", "kept"),
        )
        .unwrap();
        fs::write(dir.path().join("env/pyvenv.cfg"), "home = /usr/bin\n").unwrap();
        assert_eq!(answer(&program, &cache).await, "asked\n");
        assert_eq!(kept(&cache), [file]);
    }

    #[tokio::test]
    async fn scripts_are_asked_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("python3");
        let file = program.display();
        shell(&format!(
            "printf '#!/bin/sh\\necho shim\\n' > {file} && chmod +x {file}"
        ));
        assert_eq!(answer(&program, dir.path()).await, "shim\n");
        assert_eq!(kept(dir.path()), Vec::<PathBuf>::new());
    }
}
