//! What the demo runs: a git repository with a small training script, an uncommitted change and
//! one package, and how its log must then read.

use std::path::Path;

use git2::{DiffFormat, Oid, Repository, RepositoryInitOptions, Signature};
use serde_json::{Value, json};

pub const SCRIPT: &str = "train.py";
pub const BRANCH: &str = "main";
/// Small, of Python alone, on every package index; the script fails without it.
pub const PACKAGE: &str = "tqdm";
/// The script runs for 3.8 s: the machine's first figures are sent 3 s after the claim.
const COMMITTED: &str = include_str!("train.py");
/// The uncommitted change; the log tells by the number of epochs that it was applied.
const CHANGE: [&str; 2] = ["EPOCHS = 4", "EPOCHS = 8"];
const EPOCHS: u32 = 8;
const FIRST_LINE: &str = "training with Python ";

/// The changed lines of the diff, as the demo shows them.
pub fn shown_change() -> String {
    format!("-{}\n+{}", CHANGE[0], CHANGE[1])
}

/// Makes a bare repository with one commit at `path`; gives the uncommitted change as a diff.
pub fn make_repository(path: &Path) -> Result<String, git2::Error> {
    let mut options = RepositoryInitOptions::new();
    // Nothing of the user's own templates.
    options
        .bare(true)
        .external_template(false)
        .initial_head(BRANCH);
    let repository = Repository::init_opts(path, &options)?;
    let committed = tree(&repository, COMMITTED)?;
    let changed = tree(&repository, &COMMITTED.replace(CHANGE[0], CHANGE[1]))?;
    let (committed, changed) = (
        repository.find_tree(committed)?,
        repository.find_tree(changed)?,
    );
    let who = Signature::now("clearml-agent demo", "demo@localhost")?;
    repository.commit(
        Some("HEAD"),
        &who,
        &who,
        "Fit a line to points",
        &committed,
        &[],
    )?;

    let diff = repository.diff_tree_to_tree(Some(&committed), Some(&changed), None)?;
    let mut text = Vec::new();
    diff.print(DiffFormat::Patch, |_, _, line| {
        if matches!(line.origin(), ' ' | '+' | '-') {
            text.extend(line.origin().to_string().bytes());
        }
        text.extend(line.content());
        true
    })?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn tree(repository: &Repository, script: &str) -> Result<Oid, git2::Error> {
    let mut tree = repository.treebuilder(None)?;
    tree.insert(SCRIPT, repository.blob(script.as_bytes())?, 0o100_644)?;
    tree.write()
}

/// `script` of the task. It names no commit: the run takes the branch's last one and records it.
pub fn script(repository: &Path, diff: &str) -> Value {
    json!({
        "repository": repository.to_string_lossy(), "branch": BRANCH, "diff": diff,
        "entry_point": SCRIPT, "working_dir": ".", "binary": "python3",
        "requirements": {"pip": PACKAGE},
    })
}

/// Whether the log begins with the script's first line; that of a run that never came to the script
/// is the set-up's.
pub fn is_of_the_script(log: &[String]) -> bool {
    log.first().is_some_and(|line| line.starts_with(FIRST_LINE))
}

/// What is wrong with a log that is to be the script's whole output: `None` where each line is
/// there, once and in order.
pub fn fault_of(log: &[String]) -> Option<String> {
    let mut expected = vec![FIRST_LINE.to_owned()];
    expected.extend((1..=EPOCHS).map(|epoch| format!("epoch {epoch}/{EPOCHS}  loss ")));
    expected.extend([
        "trained: y = ".into(),
        "Process completed successfully".into(),
    ]);
    let mut last = None;
    for beginning in expected {
        let mut places = (0..log.len()).filter(|place| log[*place].starts_with(&beginning));
        let shown = beginning.trim_end();
        let (Some(place), more) = (places.next(), places.count()) else {
            return Some(format!("the line `{shown} …` is not in it"));
        };
        if more > 0 {
            return Some(format!("the line `{shown} …` is in it {} times", more + 1));
        }
        if last.is_some_and(|last| place < last) {
            return Some(format!("the line `{shown} …` comes too early"));
        }
        last = Some(place);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_change_is_a_diff_that_applies_to_the_commit() {
        let dir = tempfile::tempdir().unwrap();
        let text = make_repository(dir.path()).unwrap();
        assert!(text.contains(&format!("\n{}\n", shown_change())), "{text}");
        let repository = Repository::open_bare(dir.path()).unwrap();
        let head = repository.head().unwrap();
        assert_eq!(head.shorthand(), Ok(BRANCH));
        let committed = head.peel_to_tree().unwrap();
        let diff = git2::Diff::from_buffer(text.as_bytes()).unwrap();
        let mut index = repository.apply_to_tree(&committed, &diff, None).unwrap();
        let changed = repository
            .find_tree(index.write_tree_to(&repository).unwrap())
            .unwrap();
        let script = changed
            .get_name(SCRIPT)
            .unwrap()
            .to_object(&repository)
            .unwrap();
        let script = String::from_utf8(script.peel_to_blob().unwrap().content().to_vec()).unwrap();
        assert!(
            script.contains(&format!("\nEPOCHS = {EPOCHS}\n")),
            "{script}"
        );
    }

    #[test]
    fn a_log_is_whole_or_its_fault_is_named() {
        let whole: Vec<String> = ["training with Python 3.11.2", "making points: 100%"]
            .map(str::to_owned)
            .into_iter()
            .chain((1..=EPOCHS).map(|epoch| format!("epoch {epoch}/{EPOCHS}  loss 0.5")))
            .chain([
                "trained: y = 3 x + 1".into(),
                "Process completed successfully".into(),
            ])
            .collect();
        assert_eq!(fault_of(&whole), None);
        assert!(is_of_the_script(&whole) && !is_of_the_script(&whole[1..]));
        for (change, fault) in [
            (0, "`training with Python …` is not in it"),
            (4, "`epoch 3/8  loss …` is not in it"),
            (
                whole.len() - 1,
                "`Process completed successfully …` is not in it",
            ),
        ] {
            let mut log = whole.clone();
            log.remove(change);
            let found = fault_of(&log).unwrap();
            assert!(found.contains(fault), "{found}");
        }
        let mut log = whole.clone();
        log.push(whole[2].clone());
        let found = fault_of(&log).unwrap();
        assert!(
            found.contains("`epoch 1/8  loss …` is in it 2 times"),
            "{found}"
        );
        let mut log = whole;
        log.swap(2, 3);
        let found = fault_of(&log).unwrap();
        assert!(
            found.contains("`epoch 2/8  loss …` comes too early"),
            "{found}"
        );
    }
}
