//! `clearml-agent cache`: what environments and mirrors of repositories are kept, on this machine and for
//! containers, whether they are whole, and their removal.

mod mirrors;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::cli::{CacheArgs, CacheCommand, GlobalArgs};
use crate::config::{self, ConfigError, Lookup, Variables};
use crate::console::counted;
use crate::container::caches::{self, OfImage};
use crate::container::settings::kept_for_images;
use crate::execute::outcome::exit;
use crate::execute::run_dir;
use crate::python::cache::store::{Entry, Store, gigabytes};
use crate::python::{self, freeze};

use mirrors::Mirrors;

#[derive(Debug, thiserror::Error)]
enum CacheError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Value(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no kept environment's key starts with {0}")]
    Unknown(String),
}

impl CacheError {
    fn exit_code(&self) -> u8 {
        match self {
            CacheError::Config(_) | CacheError::Value(_) => exit::CONFIG,
            CacheError::Io(_) => exit::AGENT,
            CacheError::Unknown(_) => exit::NOT_FOUND,
        }
    }
}

/// Gives the exit code: 0, or that of a damaged environment that stays.
pub fn cache(args: &CacheArgs, global: &GlobalArgs, env: &Variables) -> u8 {
    let kept = match kept(global, env) {
        Ok(kept) => kept,
        Err(error) => {
            eprintln!("clearml-agent: {error}");
            return error.exit_code();
        }
    };
    let done = match &args.command {
        CacheCommand::List => {
            if kept.places.iter().all(|place| place.image.is_some()) {
                println!("No environments of this machine: `agent.venvs_cache.path` is empty");
            }
            kept.places.iter().for_each(Place::list);
            kept.mirrors.iter().for_each(Mirrors::list);
            Ok(0)
        }
        CacheCommand::Verify { remove } => {
            let left = verify(&kept.places, *remove) + mirrors::verify(&kept.mirrors, *remove);
            Ok(if left == 0 { 0 } else { exit::AGENT })
        }
        CacheCommand::Prune {
            all,
            unused_days,
            keys,
        } => prune(&kept, *all, *unused_days, keys),
    };
    done.unwrap_or_else(|error| {
        eprintln!("clearml-agent: {error}");
        error.exit_code()
    })
}

/// Environments that are kept in one folder: this machine's, or those of an image's containers.
struct Place {
    store: Store,
    image: Option<OfImage>,
}

/// All that runs leave.
struct Kept {
    /// Without this machine's own where it keeps none.
    places: Vec<Place>,
    /// Where the runs' own folders are made.
    runs: Vec<PathBuf>,
    mirrors: Vec<Mirrors>,
}

fn kept(global: &GlobalArgs, env: &Variables) -> Result<Kept, CacheError> {
    let home = env.get("HOME").filter(|h| !h.is_empty());
    let config = config::load(&Lookup {
        config_file: global.config_file.as_deref(),
        env,
        home: home.map(|home| std::path::Path::new(home.as_str())),
    })?;
    let lookup = |key: &str| config.value(key).cloned();
    let settings = python::Settings::from_lookup(&lookup, env).map_err(CacheError::Value)?;
    let own = settings.venvs_cache.map(|settings| Place {
        store: Store::look(&settings),
        image: None,
    });
    let mut places = Vec::from_iter(own);
    let mut runs = Vec::from_iter(config.path("agent.venvs_dir"));
    for kept in kept_for_images(&config) {
        for image in caches::of_images(&kept.host) {
            let settings = python::settings::cache_at(kept.environments(&image), &lookup)
                .map_err(CacheError::Value)?;
            runs.extend(kept.runs(&image));
            places.push(Place {
                store: Store::look(&settings),
                image: Some(image),
            });
        }
    }
    Ok(Kept {
        places,
        runs,
        mirrors: mirrors::all(&config),
    })
}

impl Place {
    fn is_there(&self) -> bool {
        match self.image {
            None => self.store.root().is_dir(),
            Some(_) => self.store.exists(),
        }
    }

    fn entries(&self) -> Vec<Entry> {
        match self.is_there() {
            true => self.store.entries(),
            false => Vec::new(),
        }
    }

    fn list(&self) {
        let entries = self.entries();
        if let Some(image) = &self.image {
            if entries.is_empty() {
                return;
            }
            println!("\nIn containers of {}{}:", image.image, whose(image));
        }
        let mut bytes = 0;
        for entry in &entries {
            let manifest = &entry.manifest;
            bytes += manifest.bytes;
            let line = format!(
                "{}  used {} ago  {:.2} GB  {}  Python {}  {}: {}",
                shown(&manifest.key),
                ago(entry.last_used),
                gigabytes(manifest.bytes),
                counted(manifest.files, "file"),
                manifest.python,
                manifest.installer,
                some_of(&manifest.packages)
            );
            println!("{}", printable(&line));
        }
        println!(
            "{} in {}, {:.2} GB (files that they share with uv's cache or with runs \
             take no room of their own)",
            counted(entries.len() as u64, "environment"),
            self.store.root().display(),
            gigabytes(bytes)
        );
    }
}

fn whose(image: &OfImage) -> String {
    match image.user.as_str() {
        "0" => String::new(),
        user => format!(", run by user {user}"),
    }
}

/// Part of a line: of which containers it is.
fn of_containers(place: &Place) -> String {
    let image = place.image.as_ref();
    image.map_or_else(String::new, |image| {
        format!(" ({}{})", image.image, whose(image))
    })
}

/// What a container wrote may be anything; a terminal obeys some of it.
fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(plain).collect()
}

/// So much of a key tells it from the others.
const KEY_SHOWN: usize = 12;

fn shown(key: &str) -> &str {
    key.get(..KEY_SHOWN).unwrap_or(key)
}

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

/// Gives how many damaged ones stay.
fn verify(places: &[Place], remove: bool) -> usize {
    let (mut all, mut damaged, mut left) = (0, 0, 0);
    for place in places {
        for entry in place.entries() {
            all += 1;
            let key = &entry.manifest.key;
            let (of, found) = (of_containers(place), damage(&entry));
            if found.is_empty() {
                println!("{}  whole{of}", shown(key));
                continue;
            }
            damaged += 1;
            let removed = match remove.then(|| place.store.remove(key)) {
                None => String::new(),
                Some(Ok(true)) => ", removed".to_owned(),
                Some(Ok(false)) => ", stays: a run copies it just now".to_owned(),
                Some(Err(error)) => format!(", cannot be removed: {error}"),
            };
            left += usize::from(removed != ", removed");
            println!("{}  damaged{removed}{of}", shown(key));
            for line in &found {
                println!("    {}", printable(line));
            }
        }
    }
    println!("{}, {damaged} damaged", counted(all, "environment"));
    left
}

fn folders_of_runs(number: u64) -> String {
    match number {
        1 => "1 folder of a run that was killed".to_owned(),
        _ => format!("{number} folders of runs that were killed"),
    }
}

fn prune(
    kept: &Kept,
    all: bool,
    unused_days: Option<u64>,
    keys: &[String],
) -> Result<u8, CacheError> {
    let places = &kept.places;
    let entries: Vec<(&Place, Entry)> = places
        .iter()
        .flat_map(|place| place.entries().into_iter().map(move |entry| (place, entry)))
        .collect();
    let is_named = |entry: &Entry| {
        let key = &entry.manifest.key;
        keys.iter().any(|wanted| key.starts_with(wanted.as_str()))
    };
    for wanted in keys {
        let mut known = entries.iter().map(|(_, entry)| &entry.manifest.key);
        if !known.any(|key| key.starts_with(wanted.as_str())) {
            return Err(CacheError::Unknown(wanted.clone()));
        }
    }
    let too_old = |entry: &Entry| {
        let unused = entry.last_used.elapsed().unwrap_or(Duration::ZERO);
        unused_days.is_some_and(|days| unused >= Duration::from_secs(days * 86_400))
    };
    let mut code = 0;
    let mut gone: HashSet<PathBuf> = HashSet::new();
    for (place, entry) in &entries {
        let key = &entry.manifest.key;
        if all || too_old(entry) || is_named(entry) {
            match place.store.remove(key) {
                Ok(true) => _ = gone.insert(entry.folder.clone()),
                Ok(false) => println!("{}  stays: a run copies it just now", shown(key)),
                Err(error) => {
                    code = exit::AGENT;
                    println!("{}  cannot be removed: {error}", shown(key));
                }
            }
        }
    }
    let (old_mirrors, well) = match unused_days {
        Some(days) => mirrors::prune(&kept.mirrors, days),
        None => (0, true),
    };
    if !well {
        code = exit::AGENT;
    }
    let mut swept = 0;
    for place in places.iter().filter(|place| place.is_there()) {
        if keys.is_empty() {
            match place.store.make_room(0) {
                Ok(more) => gone.extend(more.iter().map(|key| place.store.root().join(key))),
                Err(full) => println!("{full}"),
            }
        }
        match place.store.sweep() {
            Ok(more) => swept += more as u64,
            Err(error) => {
                code = exit::AGENT;
                println!("{}: {error}", place.store.root().display());
            }
        }
    }
    let runs = kept.runs.iter().map(|runs| run_dir::remove_leftovers(runs));
    let runs = runs.sum();
    let removed: Vec<_> = entries
        .iter()
        .filter(|(_, entry)| gone.contains(&entry.folder))
        .collect();
    for (place, entry) in &removed {
        println!(
            "{}  removed, {:.2} GB{}",
            shown(&entry.manifest.key),
            gigabytes(entry.manifest.bytes),
            of_containers(place)
        );
    }
    println!(
        "{}, {}, {} and {} removed, {} kept",
        counted(removed.len() as u64, "environment"),
        counted(old_mirrors, "mirror"),
        counted(swept, "leftover"),
        folders_of_runs(runs),
        counted((entries.len() - removed.len()) as u64, "environment")
    );
    Ok(code)
}
