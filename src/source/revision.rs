//! Which commit a task means: `version_num`, else its tag, else its branch, else the remote's
//! default branch.

use git2::{ErrorCode, Oid, Repository};

use super::nearest::nearest;
use crate::task::Script;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wanted {
    /// A complete commit id: the one kind of revision that cannot move.
    Commit(Oid),
    /// `version_num` that is no complete id: a branch, a tag or an abbreviated id.
    Revision(String),
    Tag(String),
    Branch(String),
    RemoteHead,
}

impl Wanted {
    pub(super) fn by(script: &Script) -> Wanted {
        let version = script.version_num.trim();
        let tag = script.tag.trim();
        let branch = script.branch.trim();
        if !version.is_empty() {
            return match Oid::from_str(version) {
                Ok(id) if version.len() == 40 => Wanted::Commit(id),
                _ => Wanted::Revision(version.to_owned()),
            };
        }
        if !tag.is_empty() {
            return Wanted::Tag(tag.to_owned());
        }
        if !branch.is_empty() {
            return Wanted::Branch(branch.to_owned());
        }
        Wanted::RemoteHead
    }

    /// The commit in a mirror (whose branches stand under `refs/heads`), and the name that it
    /// was found by; `None` if there is no such revision.
    pub(super) fn find(
        &self,
        mirror: &Repository,
    ) -> Result<Option<(Oid, Option<String>)>, git2::Error> {
        let candidates = match self {
            Wanted::Commit(id) => {
                let found = optional(mirror.find_object(*id, None))?;
                return match found {
                    Some(object) => {
                        Ok(optional(object.peel_to_commit())?.map(|commit| (commit.id(), None)))
                    }
                    None => Ok(None),
                };
            }
            Wanted::Revision(name) => {
                let mut refs = branch_refs(name);
                refs.extend(tag_refs(name));
                refs
            }
            Wanted::Tag(name) => tag_refs(name),
            Wanted::Branch(name) => branch_refs(name),
            // A server may have no HEAD, or not say which branch it is.
            Wanted::RemoteHead => [
                ("HEAD", "the remote's HEAD"),
                ("refs/heads/master", "branch master"),
                ("refs/heads/main", "branch main"),
            ]
            .map(|(reference, shown)| (reference.to_owned(), shown.to_owned()))
            .to_vec(),
        };
        for (reference, shown) in candidates {
            // A name that cannot be a reference's (blanks, ..) is simply not there.
            if !git2::Reference::is_valid_name(&reference) {
                continue;
            }
            // The HEAD of an empty repository names a branch that is not there.
            let found = mirror
                .find_reference(&reference)
                .and_then(|found| found.resolve());
            if let Some(found) = optional(found)? {
                return Ok(Some((found.peel_to_commit()?.id(), Some(shown))));
            }
        }
        if let Wanted::Revision(text) = self {
            let found = mirror
                .revparse_single(text)
                .and_then(|object| object.peel_to_commit());
            return Ok(found.ok().map(|commit| (commit.id(), Some(text.clone()))));
        }
        Ok(None)
    }

    /// `commit 1234…`, `branch "x"`: for messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Wanted::Commit(id) => format!("commit {id}"),
            Wanted::Revision(name) => format!("revision \"{name}\""),
            Wanted::Tag(name) => format!("tag \"{name}\""),
            Wanted::Branch(name) => format!("branch \"{name}\""),
            Wanted::RemoteHead => "the remote's default branch".to_owned(),
        }
    }

    /// Names in the mirror that the task may have meant.
    pub(super) fn similar(&self, mirror: &Repository) -> Vec<String> {
        let (kinds, name): (&[&str], &str) = match self {
            Wanted::Revision(name) => (&["refs/heads/", "refs/tags/"], name),
            Wanted::Tag(name) => (&["refs/tags/", "refs/heads/"], name),
            Wanted::Branch(name) => (&["refs/heads/", "refs/tags/"], name),
            Wanted::Commit(_) | Wanted::RemoteHead => return Vec::new(),
        };
        let Ok(references) = mirror.references() else {
            return Vec::new();
        };
        let names: Vec<String> = references
            .flatten()
            .filter_map(|reference| {
                let full = String::from_utf8_lossy(reference.name_bytes()).into_owned();
                kinds
                    .iter()
                    .find_map(|kind| full.strip_prefix(kind).map(str::to_owned))
            })
            .collect();
        nearest(name, names.iter().map(String::as_str))
    }
}

fn branch_refs(name: &str) -> Vec<(String, String)> {
    let plain = name.strip_prefix("refs/heads/").unwrap_or(name);
    let plain = plain.strip_prefix("refs/remotes/").unwrap_or(plain);
    let mut names = vec![plain];
    // Recorded as `origin/x` by hand or by tools; a real branch of that name comes first.
    names.extend(plain.strip_prefix("origin/"));
    names
        .into_iter()
        .map(|name| (format!("refs/heads/{name}"), format!("branch {name}")))
        .collect()
}

fn tag_refs(name: &str) -> Vec<(String, String)> {
    let plain = name.strip_prefix("refs/tags/").unwrap_or(name);
    vec![(format!("refs/tags/{plain}"), format!("tag {plain}"))]
}

fn optional<T>(result: Result<T, git2::Error>) -> Result<Option<T>, git2::Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        // The id of something that is no commit is as good as none.
        Err(error)
            if matches!(
                error.code(),
                ErrorCode::NotFound | ErrorCode::Peel | ErrorCode::InvalidSpec
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_num_wins_over_tag_over_branch() {
        let id = "0123456789012345678901234567890123456789";
        let commit = Wanted::Commit(Oid::from_str(id).unwrap());
        for (version_num, tag, branch, wanted) in [
            (id, "v1", "main", commit),
            ("dev", "v1", "main", Wanted::Revision("dev".into())),
            ("0123abc", "", "", Wanted::Revision("0123abc".into())),
            ("", " v1 ", "main", Wanted::Tag("v1".into())),
            ("", "", "main", Wanted::Branch("main".into())),
            (" ", "", "", Wanted::RemoteHead),
        ] {
            let script = Script {
                version_num: version_num.into(),
                tag: tag.into(),
                branch: branch.into(),
                ..Script::default()
            };
            assert_eq!(Wanted::by(&script), wanted);
        }
    }

    #[test]
    fn one_leading_origin_is_no_part_of_the_branch() {
        let refs = |name| -> Vec<String> { branch_refs(name).into_iter().map(|r| r.0).collect() };
        assert_eq!(refs("x"), ["refs/heads/x"]);
        assert_eq!(refs("origin/x"), ["refs/heads/origin/x", "refs/heads/x"]);
        assert_eq!(refs("refs/heads/x"), ["refs/heads/x"]);
        assert_eq!(refs("refs/remotes/origin/x")[1], "refs/heads/x");
    }
}
