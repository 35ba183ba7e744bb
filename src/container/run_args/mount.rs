//! `--mount`: `type=bind,source=/data,target=/data,readonly` and its like.

use std::path::Path;

use bollard::models::{
    Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountImageOptions, MountTmpfsOptions,
    MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig,
};

use super::volumes::absolute;
use super::{csv, units};

pub(super) fn mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount {
        typ: Some(MountType::VOLUME),
        ..Mount::default()
    };
    for field in csv::fields(text)? {
        match field.split_once('=') {
            Some((key, value)) => set(&mut mount, key, value)?,
            None if is_switch(&field) => set(&mut mount, &field, "true")?,
            None => return Err(format!("{field:?} is no key; expected key=value")),
        }
    }
    check(&mount)?;
    Ok(mount)
}

fn is_switch(key: &str) -> bool {
    matches!(
        key,
        "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive"
    )
}

fn set(mount: &mut Mount, key: &str, value: &str) -> Result<(), String> {
    let switch = || units::boolean(value).map_err(|why| format!("{key}: {why}"));
    let text = || Some(value.to_owned());
    match key {
        "type" => mount.typ = Some(kind(value)?),
        "source" | "src" => mount.source = text(),
        "target" | "dst" | "destination" => mount.target = text(),
        "readonly" | "ro" => mount.read_only = Some(switch()?),
        "consistency" => mount.consistency = Some(value.to_lowercase()),
        "bind-propagation" => bind(mount).propagation = Some(propagation(value)?),
        "bind-nonrecursive" => bind(mount).non_recursive = Some(switch()?),
        "bind-recursive" => recursive(mount, value)?,
        "volume-nocopy" => volume(mount).no_copy = Some(switch()?),
        "volume-subpath" => volume(mount).subpath = text(),
        "volume-label" => {
            let (name, value) = value.split_once('=').unwrap_or((value, ""));
            if !name.is_empty() {
                let labels = volume(mount).labels.get_or_insert_default();
                labels.insert(name.to_owned(), value.to_owned());
            }
        }
        "volume-driver" => driver(mount).name = text(),
        "volume-opt" => {
            let (name, value) = value.split_once('=').unwrap_or((value, ""));
            if !name.is_empty() {
                let options = driver(mount).options.get_or_insert_default();
                options.insert(name.to_owned(), value.to_owned());
            }
        }
        "image-subpath" => {
            mount
                .image_options
                .get_or_insert_with(MountImageOptions::default)
                .subpath = text();
        }
        "tmpfs-size" => {
            tmpfs(mount).size_bytes =
                Some(units::bytes(value).map_err(|why| format!("{key}: {why}"))?);
        }
        "tmpfs-mode" => {
            let mode = u32::from_str_radix(value, 8)
                .map_err(|_| format!("{key}: expected a file mode, like 1770"))?;
            tmpfs(mount).mode = Some(i64::from(mode));
        }
        _ => return Err(format!("{key:?} is no key of it")),
    }
    Ok(())
}

fn kind(text: &str) -> Result<MountType, String> {
    match text.to_lowercase().as_str() {
        "bind" => Ok(MountType::BIND),
        "volume" => Ok(MountType::VOLUME),
        "tmpfs" => Ok(MountType::TMPFS),
        "image" => Ok(MountType::IMAGE),
        _ => Err(format!(
            "type={text}: expected bind, volume, tmpfs or image"
        )),
    }
}

fn propagation(text: &str) -> Result<MountBindOptionsPropagationEnum, String> {
    use MountBindOptionsPropagationEnum as Propagation;
    match text.to_lowercase().as_str() {
        "private" => Ok(Propagation::PRIVATE),
        "rprivate" => Ok(Propagation::RPRIVATE),
        "shared" => Ok(Propagation::SHARED),
        "rshared" => Ok(Propagation::RSHARED),
        "slave" => Ok(Propagation::SLAVE),
        "rslave" => Ok(Propagation::RSLAVE),
        _ => Err(format!(
            "bind-propagation={text}: expected private, rprivate, shared, rshared, slave or rslave"
        )),
    }
}

fn recursive(mount: &mut Mount, text: &str) -> Result<(), String> {
    match text {
        "enabled" => {}
        "disabled" => bind(mount).non_recursive = Some(true),
        "writable" => bind(mount).read_only_non_recursive = Some(true),
        "readonly" => bind(mount).read_only_force_recursive = Some(true),
        _ => {
            return Err(format!(
                "bind-recursive={text}: expected enabled, disabled, writable or readonly"
            ));
        }
    }
    Ok(())
}

fn bind(mount: &mut Mount) -> &mut MountBindOptions {
    mount.bind_options.get_or_insert_default()
}

fn volume(mount: &mut Mount) -> &mut MountVolumeOptions {
    let options = mount.volume_options.get_or_insert_default();
    // As docker's client has it, which some engines show.
    options.driver_config.get_or_insert_default();
    options
}

fn driver(mount: &mut Mount) -> &mut MountVolumeOptionsDriverConfig {
    volume(mount).driver_config.get_or_insert_default()
}

fn tmpfs(mount: &mut Mount) -> &mut MountTmpfsOptions {
    mount.tmpfs_options.get_or_insert_default()
}

/// What docker's client and engine ask of a mount as a whole.
fn check(mount: &Mount) -> Result<(), String> {
    let kind = mount.typ;
    match mount.target.as_deref() {
        None | Some("") => return Err("it has no target=PATH".into()),
        Some(path) if !path.starts_with('/') => {
            return Err(format!("target={path} is no absolute path"));
        }
        Some(_) => {}
    }
    let source = mount.source.as_deref().unwrap_or_default();
    match kind {
        Some(MountType::BIND) if source.is_empty() => {
            return Err("a mount of type bind has a source=PATH".into());
        }
        Some(MountType::BIND) if !source.starts_with(['/', '.']) => {
            return Err(format!("source={source} is no absolute path"));
        }
        Some(MountType::IMAGE) if source.is_empty() => {
            return Err("a mount of type image has a source=IMAGE".into());
        }
        Some(MountType::TMPFS) if !source.is_empty() => {
            return Err("a mount of type tmpfs has no source".into());
        }
        _ => {}
    }
    for (keys, there, wanted) in [
        ("bind-*", mount.bind_options.is_some(), MountType::BIND),
        (
            "volume-*",
            mount.volume_options.is_some(),
            MountType::VOLUME,
        ),
        ("image-*", mount.image_options.is_some(), MountType::IMAGE),
        ("tmpfs-*", mount.tmpfs_options.is_some(), MountType::TMPFS),
    ] {
        if there && kind != Some(wanted) {
            return Err(format!("{keys} keys are for type={wanted}"));
        }
    }
    if let Some(options) = &mount.bind_options {
        let readonly = mount.read_only == Some(true);
        let forced = options.read_only_force_recursive == Some(true);
        if (forced || options.read_only_non_recursive == Some(true)) && !readonly {
            return Err("bind-recursive=readonly and =writable go with readonly".into());
        }
        if forced && options.propagation != Some(MountBindOptionsPropagationEnum::RPRIVATE) {
            return Err("bind-recursive=readonly goes with bind-propagation=rprivate".into());
        }
    }
    Ok(())
}

/// The mount with its source from `cwd` on, where it is a relative path.
pub(super) fn placed(mount: &Mount, cwd: &Path) -> Mount {
    let source = mount.source.as_deref().map(|source| {
        match source == "."
            || source.starts_with("./")
            || source.starts_with("../")
            || source == ".."
        {
            true => absolute(source, cwd),
            false => source.to_owned(),
        }
    });
    Mount {
        source,
        ..mount.clone()
    }
}
