//! gitattributes(5): whether files are to be written as they are stored.

use std::path::PathBuf;

use git2::{ObjectType, Oid, Repository, TreeWalkMode, TreeWalkResult};

/// Whether every file of `commit` is written to the work tree byte for byte: no line ends to
/// convert, no `$Id$` to expand. For each file libgit2 would look that up again, and resolve the
/// whole path for it; that takes as long as writing the file.
pub(super) fn files_stay_as_stored(
    repository: &Repository,
    commit: Oid,
) -> Result<bool, git2::Error> {
    let config = repository.config()?.snapshot()?;
    for key in ["core.autocrlf", "core.eol", "core.attributesfile"] {
        if config.get_entry(key).is_ok() {
            return Ok(false);
        }
    }
    // Where git keeps attributes of the user and of the machine.
    let system = git2::Config::find_system().map(|file| file.with_file_name("gitattributes"));
    let config_home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = std::env::home_dir().map(|home| home.join(".config"));
    let elsewhere = [
        config_home.map(|folder| folder.join("git/attributes")),
        home.map(|folder| folder.join("git/attributes")),
        system.ok(),
        Some("/etc/gitattributes".into()),
    ];
    if elsewhere.iter().flatten().any(|file| file.exists()) {
        return Ok(false);
    }
    let mut stay = true;
    let tree = repository.find_commit(commit)?.tree()?;
    let walked = tree.walk(TreeWalkMode::PreOrder, |_, entry| {
        if entry.name_bytes() == b".gitattributes" && entry.kind() == Some(ObjectType::Blob) {
            // What can't be read here is told when it is written.
            stay &= repository
                .find_blob(entry.id())
                .is_ok_and(|blob| !change_contents(blob.content()));
        }
        match stay {
            true => TreeWalkResult::Ok,
            false => TreeWalkResult::Abort,
        }
    });
    if stay {
        walked?;
    }
    Ok(stay)
}

/// Whether an attribute of this file's makes git write something else than what is stored. `text`
/// alone does not: on this system lines end as they are stored. Filters and encodings are not
/// libgit2's business, but `filters`'s.
pub(super) fn change_contents(attributes: &[u8]) -> bool {
    attributes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii_start().starts_with(b"#"))
        .flat_map(|line| line.split(u8::is_ascii_whitespace))
        .any(|word| [b"eol=crlf".as_slice(), b"ident"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_line_ends_and_ident_change_files() {
        for (text, changes) in [
            ("", false),
            ("* text=auto\n*.py text diff=python\n*.sh eol=lf\n", false),
            ("*.bin filter=lfs diff=lfs merge=lfs -text\n", false),
            ("# *.bat eol=crlf\n", false),
            ("*.bat eol=crlf\n", true),
            ("*.bat\ttext eol=crlf\r\n", true),
            ("\"with blank.c\" ident\n", true),
            ("[attr]versioned ident\n", true),
            ("*.c -ident\n", false),
        ] {
            assert_eq!(change_contents(text.as_bytes()), changes, "{text:?}");
        }
    }
}
