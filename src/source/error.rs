//! Every way in which getting the code can fail, in words for the person who has to mend it.

use std::path::{Path, PathBuf};

use git2::{ErrorClass, ErrorCode};

use super::apply::ApplyError;
use super::diff::ParseError;
use super::url::{Address, Transport};

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "the task has nothing to run: it names no repository and holds no script text\n\
         Next: set the task's repository and entry point, or create the task again with the \
         ClearML SDK so that its code is recorded"
    )]
    NothingToRun,

    #[error(
        "the task names the repository {url} but no entry point to run in it\n\
         Next: set the task's entry point (script.entry_point), for example train.py"
    )]
    NoEntryPoint { url: String },

    #[error(
        "repository {url} not found: {cause}\n\
         Next: check the address; if the repository is private, check that these credentials may \
         read it ({offered})"
    )]
    RepositoryNotFound {
        url: String,
        cause: String,
        offered: String,
    },

    #[error(
        "repository {path} not found on this machine: {cause}\n\
         Next: check the path; in a container only what is mounted there is seen. If the task was made on \
         another machine, give it an address that this one reaches, too"
    )]
    PathNotFound { path: String, cause: String },

    #[error(
        "no access to repository {url}: {cause}\n\
         Offered: {offered}\n\
         Next: give a user and password (or token) that may read it with --git-user/--git-pass, \
         CLEARML_AGENT_GIT_USER/CLEARML_AGENT_GIT_PASS or agent.git_user/agent.git_pass \
         (agent.git_host limits them to one host); for ssh, load a key into the \
         ssh agent (there alone one with a passphrase can be used) or ~/.ssh"
    )]
    Authentication {
        url: String,
        cause: String,
        offered: String,
    },

    #[error(
        "cannot reach the host of repository {url}: {cause}\n\
         Next: check the address, this machine's network and its proxy settings"
    )]
    Unreachable { url: String, cause: String },

    #[error(
        "the identity of the host of repository {url} cannot be verified: {cause}\n\
         Next: for https, give the certificate authority's bundle to the agent \
         (api.verify_certificate); for ssh, add the host's key to ~/.ssh/known_hosts"
    )]
    HostIdentity { url: String, cause: String },

    #[error("repository {url} cannot be fetched in any of these ways:\n{tried}\n{next}")]
    NoWay {
        url: String,
        /// A line for each way: what was tried and what came of it.
        tried: String,
        /// What to do about each of them.
        next: String,
    },
    #[error(
        "repository {url} is not on this machine at the task's revision, and --standalone-mode \
         fetches nothing\n\
         Next: run the task here once without --standalone-mode, or put a checkout into \
         task_repository below agent.venvs_dir"
    )]
    Offline { url: String },

    #[error("fetching repository {url} failed: {cause}")]
    Fetch {
        url: String,
        cause: String,
        /// What is at hand already is at fault, not the remote.
        damaged: bool,
    },

    #[error(
        "{wanted} is not in repository {url} (searched: {searched}){near}\n\
         Next: push it (`git push`) and enqueue the task again, or choose another revision"
    )]
    RevisionNotFound {
        wanted: String,
        url: String,
        searched: String,
        /// `; did you mean a, b?` or nothing.
        near: String,
    },

    #[error("checking out {commit} of {url} failed: {cause}")]
    Checkout {
        commit: String,
        url: String,
        cause: String,
        /// The objects at hand were incomplete or damaged.
        damaged: bool,
    },

    #[error(
        "{files} are in Git LFS, and there is no git-lfs on this machine to download them\n\
         Next: install git and git-lfs here (or in the image), or set GIT_LFS_SKIP_SMUDGE=1 for the \
         agent if the task does not need them"
    )]
    LfsMissing { files: String },

    #[error(
        "downloading {files} from Git LFS failed: {cause}\n\
         Next: check that the files were pushed (`git lfs push --all origin`) and that the \
         repository's credentials may read them"
    )]
    Lfs { files: String, cause: String },

    #[error(
        "{file} has the attribute {what}, which takes git, and there is no git on this machine\n\
         Next: install git here (or in the image)"
    )]
    AttributeNeedsGit { file: String, what: String },

    #[error(
        "{file} has the filter \"{name}\", which git's configuration here calls required \
         (filter.{name}.required) without saying what to run\n\
         Next: set filter.{name}.smudge or filter.{name}.process in this user's git configuration, or \
         take filter.{name}.required away"
    )]
    FilterWithoutCommand { file: String, name: String },

    #[error(
        "git cannot write {files} as .gitattributes asks for: {cause}\n\
         Next: `git clone` of the repository must work here for this user; check the filters in git's \
         configuration (`git config --get-regexp ^filter`)"
    )]
    Filter { files: String, cause: String },

    #[error("submodule {path}: {cause}")]
    Submodule {
        path: String,
        #[source]
        cause: Box<SourceError>,
    },

    #[error(
        "the task's working directory \"{working_dir}\" is not in {root}{near}\n\
         Next: correct the task's working directory (script.working_dir), or commit and push it"
    )]
    WorkingDirMissing {
        working_dir: String,
        root: String,
        near: String,
    },

    #[error(
        "the task's entry point \"{entry_point}\" is not in {root} (working directory \
         \"{working_dir}\"){near}\n\
         Next: commit and push it, or correct the task's entry point or working directory"
    )]
    EntryPointMissing {
        entry_point: String,
        working_dir: String,
        root: String,
        near: String,
    },

    #[error(
        "the task's uncommitted changes were too large to be stored in it; only a note stands in \
         their place, and there is no artifact auxiliary_git_diff with the changes in this task or in \
         the one that it was cloned from\n\
         Next: commit and push the changes and run the task again from there, or clear its \
         uncommitted changes to run the commit as it is"
    )]
    DiffTooLarge,

    #[error(
        "the task's uncommitted changes cannot be read: {0}\n\
         Next: clear or correct the task's uncommitted changes (script.diff), or commit and push them"
    )]
    DiffSyntax(#[from] ParseError),

    #[error(
        "the task's uncommitted changes are neither a diff of repository {url} nor a script (they \
         begin with {first_line:?}); nothing was changed\n\
         Next: clear or correct the task's uncommitted changes (script.diff)"
    )]
    NotChanges { url: String, first_line: String },

    #[error(
        "the task's uncommitted changes do not apply to commit {commit} (which is on the remote), and \
         nothing was changed: {cause}\n\
         Next: check that this is the commit its changes were made on, or commit and push the changes"
    )]
    Diff { commit: String, cause: ApplyError },

    #[error("{doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },

    #[error("{doing}: {}", source.message())]
    Git {
        doing: &'static str,
        source: git2::Error,
    },

    #[error("stopped while getting the task's code")]
    Stopped,
}

impl SourceError {
    /// A remote operation's failure, by what the person can do about it. `offered` are the
    /// credentials that were tried.
    pub(super) fn remote(address: &Address, error: &git2::Error, offered: &[String]) -> Self {
        Self::sorted(
            address,
            error.code(),
            error.class(),
            last_line(error.message()),
            offered,
        )
    }

    /// What the ssh program said when it failed.
    pub(super) fn ssh(address: &Address, said: &str) -> Self {
        let offered = ["what the ssh program offers by its own configuration".to_owned()];
        let (code, class) = (ErrorCode::GenericError, ErrorClass::Ssh);
        Self::sorted(address, code, class, said.to_owned(), &offered)
    }

    /// What git itself said when it failed.
    pub(super) fn git_program(address: &Address, said: &str) -> Self {
        let (code, class) = (ErrorCode::GenericError, ErrorClass::None);
        Self::sorted(address, code, class, said.to_owned(), &[])
    }

    /// The same, with what git itself said to it.
    pub(super) fn also(mut self, git_said: &str) -> Self {
        if let Self::Authentication { cause, .. }
        | Self::HostIdentity { cause, .. }
        | Self::Unreachable { cause, .. }
        | Self::PathNotFound { cause, .. }
        | Self::Fetch { cause, .. } = &mut self
        {
            cause.push_str(&format!(" (git itself: {git_said})"));
        }
        self
    }

    /// One failure for all the ways that were tried.
    pub(super) fn no_way(address: &Address, mut failures: Vec<(String, SourceError)>) -> Self {
        if failures.len() < 2 {
            return failures.pop().map_or(Self::Stopped, |(_, error)| error);
        }
        let mut tried = Vec::new();
        let mut next: Vec<String> = Vec::new();
        for (way, error) in &failures {
            let text = error.to_string();
            let (what, advice) = text.split_once("\nNext: ").unwrap_or((&text, ""));
            tried.push(format!("- {way}: {}", what.replace('\n', "; ")));
            let advice = format!("Next: {advice}");
            if advice.len() > "Next: ".len() && !next.contains(&advice) {
                next.push(advice);
            }
        }
        Self::NoWay {
            url: address.shown(),
            tried: tried.join("\n"),
            next: next.join("\n"),
        }
    }

    fn sorted(
        address: &Address,
        code: ErrorCode,
        class: ErrorClass,
        cause: String,
        offered: &[String],
    ) -> Self {
        let url = address.shown();
        let lower = cause.to_lowercase();
        let said = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let offered = match offered {
            [] => "no credentials are known for this host".to_owned(),
            some => some.join(", "),
        };
        if said(&["object format 'sha256'", "server sha256"]) {
            return Self::Fetch {
                url,
                cause:
                    "its objects are named by SHA-256, which this agent cannot read; give it an \
                        address of a repository with SHA-1 names"
                        .to_owned(),
                damaged: false,
            };
        }
        // Not the repository's server: no login for that one would help.
        if said(&[
            "proxy authentication",
            "proxy returned",
            "connect tunnel failed",
        ]) {
            return Self::Unreachable { url, cause };
        }
        if code == ErrorCode::Certificate
            || said(&["certificate", "known_hosts", "hostkey", "host key"])
        {
            return Self::HostIdentity { url, cause };
        }
        // Whatever is wrong with a folder of this machine, no login mends it. Another path that is named is the
        // mirror's.
        let nothing_there =
            cause == "unsupported URL protocol" || cause.starts_with("failed to resolve address");
        let of_the_path = nothing_there
            || code == ErrorCode::NotFound
            || class == ErrorClass::Repository
            || cause.contains(address.path().trim_end_matches('/'));
        if address.transport == Transport::Local && of_the_path {
            let cause = match nothing_there {
                // libgit2 goes on to look for a protocol, or a host.
                true => "there is no such folder".to_owned(),
                false => cause,
            };
            return Self::PathNotFound { path: url, cause };
        }
        if code == ErrorCode::Auth
            || said(&[
                "status code: 401",
                "status code: 403",
                "authentication",
                "publickey",
                "permission denied",
            ])
        {
            return Self::Authentication {
                url,
                cause,
                offered,
            };
        }
        let not_there = [
            "status code: 404",
            "repository not found",
            "not found.",
            "does not exist",
            "does not appear to be a git repository",
            "no such project",
            "could not be found",
        ];
        if said(&not_there) {
            return Self::RepositoryNotFound {
                url,
                cause,
                offered,
            };
        }
        let unreachable = [
            "resolve address",
            "failed to connect",
            "could not connect",
            "timed out",
            "timeout",
            "refused",
            "unreachable",
            "no route",
            "could not resolve",
            "connection closed",
            "connection reset",
            "cannot be started",
        ];
        // It was reached, and said something else than was asked for: that it has no such commit.
        let answered = said(&[
            "unexpected packet",
            "invalid packet",
            "not our ref",
            "remote error",
        ]);
        if !answered && (matches!(class, ErrorClass::Net) || said(&unreachable)) {
            return Self::Unreachable { url, cause };
        }
        let damaged = matches!(
            class,
            ErrorClass::Odb
                | ErrorClass::Object
                | ErrorClass::Reference
                | ErrorClass::Tree
                | ErrorClass::Zlib
                | ErrorClass::Repository
        );
        Self::Fetch {
            url,
            cause,
            damaged,
        }
    }

    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    pub(super) fn git(doing: &'static str) -> impl FnOnce(git2::Error) -> Self {
        move |source| Self::Git { doing, source }
    }

    /// Whether a repository made anew from its remote could help.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Checkout { damaged, .. } | Self::Fetch { damaged, .. } => *damaged,
            // Everything local that a mirror is asked is answerable by a sound one.
            Self::Git { .. } => true,
            _ => false,
        }
    }

    /// Whether a fetch failed in a way that says nothing of the remote: with a mirror made anew it may not.
    pub(super) fn is_of_fetch(&self) -> bool {
        matches!(
            self,
            Self::Fetch { .. } | Self::NoWay { .. } | Self::Io { .. } | Self::Git { .. }
        )
    }

    /// Whether the folder with the mirrors is at fault (a full or read-only disk, one that lost its
    /// connection), and another place may do.
    pub(super) fn is_of_folder(&self, folder: &Path) -> bool {
        match self {
            Self::Io { path, .. } => path.starts_with(folder),
            Self::Fetch { cause, .. }
            | Self::Authentication { cause, .. }
            | Self::Unreachable { cause, .. } => {
                self.is_damage() || cause.contains(&*folder.to_string_lossy())
            }
            Self::NoWay { tried, .. } => tried.contains(&*folder.to_string_lossy()),
            other => other.is_damage(),
        }
    }
}

/// `; did you mean a, b?`, or nothing where there is no guess.
pub(super) fn did_you_mean(near: &[String]) -> String {
    match near {
        [] => String::new(),
        some => format!("; did you mean {}?", some.join(", ")),
    }
}

/// libgit2 puts the most exact cause last.
fn last_line(message: &str) -> String {
    let line = message.trim().lines().last().unwrap_or_default();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_failures_are_told_apart() {
        let kind = |url: &str, code, class, message: &str| {
            let error = git2::Error::new(code, class, message);
            match SourceError::remote(&Address::parse(url), &error, &[]) {
                SourceError::RepositoryNotFound { .. } => "missing",
                SourceError::PathNotFound { .. } => "no such path",
                SourceError::Authentication { .. } => "auth",
                SourceError::Unreachable { .. } => "unreachable",
                SourceError::HostIdentity { .. } => "identity",
                _ => "other",
            }
        };
        use ErrorClass as C;
        let any = ErrorCode::GenericError;
        for (class, message, expected) in [
            (C::Http, "unexpected http status code: 404", "missing"),
            (C::Http, "unexpected http status code: 403", "auth"),
            (C::Http, "unexpected http status code: 500", "other"),
            (
                C::Net,
                "failed to resolve address for h: Name or service not known",
                "unreachable",
            ),
            (
                C::Os,
                "failed to connect to h: Connection refused",
                "unreachable",
            ),
            (C::Ssl, "the SSL certificate is invalid", "identity"),
            (
                C::Http,
                "proxy authentication required but no callback set",
                "unreachable",
            ),
            (
                C::Http,
                "proxy returned unexpected status: 403",
                "unreachable",
            ),
            (C::Net, "invalid packet line", "other"),
            (C::Zlib, "bad data", "other"),
        ] {
            assert_eq!(
                kind("https://h/a", any, class, message),
                expected,
                "{message}"
            );
        }
        assert_eq!(
            kind("https://h/a", ErrorCode::Auth, C::Callback, "no more"),
            "auth"
        );
        assert_eq!(
            kind(
                "/srv/a",
                ErrorCode::NotFound,
                C::Os,
                "failed to resolve path"
            ),
            "no such path"
        );
        for (message, expected) in [
            ("unsupported URL protocol", "no such path"),
            (
                "failed to open '/srv/a/HEAD': Permission denied",
                "no such path",
            ),
            (
                "failed to write '/cache/b.git/objects/x': No space left on device",
                "other",
            ),
        ] {
            assert_eq!(kind("/srv/a/", any, C::Os, message), expected, "{message}");
        }
    }
}
