//! `clearml-agent cache`: what environments are kept, whether they are whole, and their removal.

use std::time::{Duration, SystemTime};

use crate::cli::{CacheArgs, CacheCommand, GlobalArgs};
use crate::config::{self, ConfigError, Lookup, Variables};
use crate::execute::outcome::exit;
use crate::python::cache::settings::CacheSettings;
use crate::python::cache::store::{Entry, Store, gigabytes};
use crate::python::{self, freeze};

#[derive(Debug, thiserror::Error)]
enum CacheError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Value(String),
    #[error("there is no cache: `agent.venvs_cache.path` is empty")]
    Off,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no kept environment's key starts with {0}")]
    Unknown(String),
}

impl CacheError {
    fn exit_code(&self) -> u8 {
        match self {
            CacheError::Config(_) | CacheError::Value(_) | CacheError::Off => exit::CONFIG,
            CacheError::Io(_) => exit::AGENT,
            CacheError::Unknown(_) => exit::NOT_FOUND,
        }
    }
}

/// Gives the exit code: 0, or that of a damaged environment that stays.
pub fn cache(args: &CacheArgs, global: &GlobalArgs, env: &Variables) -> u8 {
    let store = match settings(global, env) {
        Ok(settings) => Store::look(&settings),
        Err(error) => {
            eprintln!("clearml-agent: {error}");
            return error.exit_code();
        }
    };
    let done = match &args.command {
        CacheCommand::List => {
            list(&store);
            Ok(0)
        }
        CacheCommand::Verify { remove } => verify(&store, *remove),
        CacheCommand::Prune {
            all,
            unused_days,
            keys,
        } => prune(&store, *all, *unused_days, keys).map(|()| 0),
    };
    done.unwrap_or_else(|error| {
        eprintln!("clearml-agent: {error}");
        error.exit_code()
    })
}

fn settings(global: &GlobalArgs, env: &Variables) -> Result<CacheSettings, CacheError> {
    let home = env.get("HOME").filter(|h| !h.is_empty());
    let config = config::load(&Lookup {
        config_file: global.config_file.as_deref(),
        env,
        home: home.map(|home| std::path::Path::new(home.as_str())),
    })?;
    python::Settings::from_lookup(&|key| config.value(key).cloned(), env)
        .map_err(CacheError::Value)?
        .venvs_cache
        .ok_or(CacheError::Off)
}

fn list(store: &Store) {
    let entries = store.entries();
    let mut bytes = 0;
    for entry in &entries {
        let manifest = &entry.manifest;
        bytes += manifest.bytes;
        println!(
            "{}  used {} ago  {:.2} GB  {} files  Python {}  {}: {}",
            &manifest.key[..KEY_SHOWN],
            ago(entry.last_used),
            gigabytes(manifest.bytes),
            manifest.files,
            manifest.python,
            manifest.installer,
            some_of(&manifest.packages)
        );
    }
    println!(
        "{} environments in {}, {:.2} GB (files that they share with uv's cache or with runs \
         take no room of their own)",
        entries.len(),
        store.root().display(),
        gigabytes(bytes)
    );
}

/// So much of a key tells it from the others.
const KEY_SHOWN: usize = 12;
const PACKAGES_SHOWN: usize = 6;

fn some_of(packages: &[String]) -> String {
    let shown: Vec<&str> = packages
        .iter()
        .take(PACKAGES_SHOWN)
        .map(String::as_str)
        .collect();
    match packages.len().saturating_sub(PACKAGES_SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn ago(time: SystemTime) -> String {
    match time.elapsed().unwrap_or(Duration::ZERO).as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86400),
    }
}

/// What is wrong with an environment; nothing, if nothing is.
fn damage(entry: &Entry) -> Vec<String> {
    let root = entry.environment();
    let tree = match entry.files() {
        Ok(tree) => tree,
        Err(error) => return vec![format!("its list of files: {error}")],
    };
    let changed = tree.changed_files(&root);
    let mut found: Vec<String> = changed
        .iter()
        .map(|file| format!("{file} is not as it was kept"))
        .collect();
    for file in freeze::differing(&root) {
        // Scripts are written for the place that they are in, after their hash was recorded.
        if !changed.contains(&file) && !file.starts_with("bin/") {
            found.push(format!("{file} has not the contents that its package has"));
        }
    }
    found
}

fn verify(store: &Store, remove: bool) -> Result<u8, CacheError> {
    let (mut damaged, mut left) = (0, 0);
    let entries = store.entries();
    for entry in &entries {
        let key = &entry.manifest.key;
        let found = damage(entry);
        if found.is_empty() {
            println!("{}  whole", &key[..KEY_SHOWN]);
            continue;
        }
        damaged += 1;
        let removed = remove && store.remove(key)?;
        left += u8::from(!removed);
        println!(
            "{}  damaged{}",
            &key[..KEY_SHOWN],
            if removed { ", removed" } else { "" }
        );
        for line in &found {
            println!("    {line}");
        }
    }
    println!("{} environments, {damaged} damaged", entries.len());
    Ok(if left == 0 { 0 } else { exit::AGENT })
}

fn prune(
    store: &Store,
    all: bool,
    unused_days: Option<u64>,
    keys: &[String],
) -> Result<(), CacheError> {
    if !store.root().is_dir() {
        println!("nothing is kept in {}", store.root().display());
        return Ok(());
    }
    let entries = store.entries();
    for wanted in keys {
        if !entries
            .iter()
            .any(|e| e.manifest.key.starts_with(wanted.as_str()))
        {
            return Err(CacheError::Unknown(wanted.clone()));
        }
    }
    let too_old = |entry: &Entry| {
        let unused = entry.last_used.elapsed().unwrap_or(Duration::ZERO);
        unused_days.is_some_and(|days| unused >= Duration::from_secs(days * 86_400))
    };
    let mut removed = Vec::new();
    for entry in &entries {
        let key = &entry.manifest.key;
        if all || too_old(entry) || keys.iter().any(|k| key.starts_with(k.as_str())) {
            match store.remove(key)? {
                true => removed.push(key.clone()),
                false => println!("{}  stays: a run copies it just now", &key[..KEY_SHOWN]),
            }
        }
    }
    if keys.is_empty() {
        match store.make_room(0) {
            Ok(gone) => removed.extend(gone),
            Err(full) => println!("{full}"),
        }
    }
    for entry in entries.iter().filter(|e| removed.contains(&e.manifest.key)) {
        println!(
            "{}  removed, {:.2} GB",
            &entry.manifest.key[..KEY_SHOWN],
            gigabytes(entry.manifest.bytes)
        );
    }
    let swept = store.sweep()?;
    println!(
        "{} environments and {swept} leftovers removed, {} environments kept",
        removed.len(),
        entries.len() - removed.len()
    );
    Ok(())
}
