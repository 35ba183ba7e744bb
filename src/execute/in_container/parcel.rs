//! What is placed in a container before it starts: the agent, its configuration, its orders, and this
//! user's keys.

use std::collections::BTreeMap;

use super::super::run::Run;
use crate::api::Trust;
use crate::container::archive::Item;
use crate::container::caches::{self, Mounted};
use crate::container::error::ContainerError;
use crate::container::handover::{self, Handover, Parcel};
use crate::container::programs::{self, Program};
use crate::container::settings::Settings;
use crate::container::user::User;

/// What is placed in the container, and for whom.
pub(in super::super) struct Place<'a> {
    pub settings: &'a Settings,
    pub mounts: &'a [Mounted],
    pub user: &'a User,
    pub programs: &'a Programs,
    pub script: &'a str,
}

/// What runs in the container that is not the image's.
pub(in super::super) struct Programs {
    pub agent: Program,
    /// Without it the inner agent looks for one itself.
    pub uv: Option<Program>,
}

impl Programs {
    pub fn mounted(&self) -> Vec<(String, &'static str)> {
        let all = [
            (Some(&self.agent), programs::AGENT),
            (self.uv.as_ref(), programs::UV),
        ];
        let mounted = all
            .into_iter()
            .filter_map(|(program, target)| match program {
                Some(Program::Mounted(file)) => Some((file.clone(), target)),
                _ => None,
            });
        mounted.collect()
    }
}

/// The agent, its configuration and its orders; `change` has the last word on these.
pub(in super::super) fn parcel(
    run: &Run,
    place: Place<'_>,
    change: impl FnOnce(&mut Handover),
) -> Result<Vec<Item>, ContainerError> {
    let at = "packing what goes into the container";
    let defect = |cause: String| ContainerError::Engine { at, cause };
    let certificates = match &run.settings.endpoint.trust {
        Trust::Bundle(path) => Some(path.clone()),
        Trust::System | Trust::Anything => None,
    };
    let mut letter = Handover {
        variables: place.settings.variables.clone(),
        setup_script: place.script.to_owned(),
        rank: run.settings.rank,
        attempt: run.attempt,
        former_end: run.former_end.clone(),
        several: run.several.clone(),
        standalone: place
            .settings
            .standalone
            .as_ref()
            .map(|folder| caches::at_home(folder, place.user).into()),
        ..Handover::default()
    };
    change(&mut letter);
    let parcel = Parcel {
        agent: place.programs.agent.clone(),
        uv: place.programs.uv.clone(),
        config: config_inside(run, place.settings, place.mounts, certificates.is_some()),
        certificates,
        letter: &letter,
        cache_is_mounted: place
            .mounts
            .iter()
            .any(|mount| mount.target == handover::CACHE),
        user: place.user,
    };
    parcel.items().map_err(|error| defect(error.to_string()))
}

/// The configuration for the agent inside: this one's, with what is this machine's taken out.
fn config_inside(
    run: &Run,
    settings: &Settings,
    mounts: &[Mounted],
    own_certificates: bool,
) -> String {
    let git = &run.settings.git.servers.credentials;
    let mut changes: BTreeMap<&str, String> = BTreeMap::from([
        ("agent.worker_id", run.settings.endpoint.worker.clone()),
        ("agent.venvs_dir", settings.runs.clone()),
        ("agent.journal.path", handover::JOURNAL.to_owned()),
        ("agent.log_file", String::new()),
        ("agent.default_python", String::new()),
        ("agent.python_binary", String::new()),
        ("agent.cuda_version", String::new()),
        ("agent.cudnn_version", String::new()),
    ]);
    if settings.system_site_packages {
        changes.insert("agent.package_manager.system_site_packages", "true".into());
    }
    if settings.caches_environments {
        changes.insert("agent.venvs_cache.path", handover::VENVS_CACHE.to_owned());
    }
    if own_certificates {
        changes.insert("api.verify_certificate", handover::CERTIFICATES.to_owned());
    }
    let git_pass = git.password.as_ref().map(|pass| pass.expose().to_owned());
    changes.extend(git.user.clone().map(|user| ("agent.git_user", user)));
    changes.extend(git_pass.map(|pass| ("agent.git_pass", pass)));
    for mount in mounts {
        changes.extend(mount.tells.map(|key| (key, mount.target.clone())));
    }
    let changes: Vec<_> = changes.into_iter().collect();
    run.settings.config.for_container(&changes)
}

/// Keys and credentials of this user, for git in the container.
pub(in super::super) fn home_files(
    run: &Run,
    settings: &Settings,
    user: &User,
    engine_is_local: bool,
) -> Vec<Item> {
    let Some(home) = run.settings.config.in_home("") else {
        return Vec::new();
    };
    let mut items = Vec::new();
    if let Some(folder) = settings.ssh.keys(engine_is_local) {
        let into = caches::at_home(folder, user);
        handover::folder_items(&home.join(".ssh"), &into, user, &mut items);
    }
    for name in [".git-credentials", ".gitconfig"] {
        let file = home.join(name);
        if file.is_file() {
            let into = format!("{}/{name}", user.home.trim_end_matches('/'));
            items.push(handover::private_file(&into, file, user));
        }
    }
    items
}
