//! What interpreters and uv said of themselves when they were last asked: starting a Python only
//! to hear its version costs a run more than all else that it does before its script. An answer
//! counts for as long as the program's file is the same.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

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
        let kept = self.kept();
        if let Some((path, stamp)) = &kept
            && let Ok(text) = fs::read_to_string(path)
            && let Some(answer) = text.strip_prefix(stamp.as_str())
        {
            return Ok(answer.to_owned());
        }
        let answer = self.run().await?;
        if let Some((path, stamp)) = kept {
            let written = path.parent().map_or(Ok(()), fs::create_dir_all);
            let written = written.and_then(|()| write_whole(&path, &format!("{stamp}{answer}")));
            if let Err(error) = written {
                tracing::debug!(%error, "the next run asks {} again", self.program.display());
            }
        }
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
