use super::*;
use serde_json::json;

fn read(config: Value, env: &[(&str, &str)]) -> Result<Settings, String> {
    let env = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Settings::from_lookup(&|key| config.get(key).cloned(), &env)
}

#[test]
fn nothing_configured_means_uv_with_pips_answers() {
    let settings = read(json!({}), &[("HOME", "/nowhere")]).unwrap();
    assert_eq!(settings.installer, Installer::Uv);
    assert!(settings.best_of_all_indexes);
    assert_eq!(settings.optional_packages, ["horovod", "pygobject"]);
    assert_eq!(settings.cache, Path::new("/nowhere/.clearml"));
    assert_eq!(settings.skip_venv, SkipVenv::No);
}

#[test]
fn who_installs_the_packages() {
    let manager = "agent.package_manager.type";
    let replace = "agent.package_manager.uv_replace_pip";
    for (config, env, installer, kind) in [
        (json!({manager: "pip"}), None, Installer::Uv, Manager::Pip),
        (
            json!({manager: "pip", replace: false}),
            None,
            Installer::Pip,
            Manager::Pip,
        ),
        (json!({replace: "no"}), None, Installer::Pip, Manager::Pip),
        (
            json!({manager: "uv", replace: false}),
            None,
            Installer::Uv,
            Manager::Uv,
        ),
        (
            json!({manager: "pip"}),
            Some("CLEARML_AGENT_FORCE_UV"),
            Installer::Uv,
            Manager::Uv,
        ),
        (
            json!({manager: "Conda"}),
            None,
            Installer::Uv,
            Manager::Conda,
        ),
        (
            json!({}),
            Some("CLEARML_AGENT_FORCE_POETRY"),
            Installer::Uv,
            Manager::Poetry,
        ),
    ] {
        let env: Vec<_> = env.iter().map(|name| (*name, "1")).collect();
        let settings = read(config.clone(), &env).unwrap();
        assert_eq!(settings.installer, installer, "{config}");
        assert_eq!(settings.manager, kind, "{config}");
    }
}

#[test]
fn conda_and_its_environments() {
    let key = |name: &str| format!("agent.package_manager.{name}");
    let settings = read(json!({}), &[]).unwrap().conda;
    assert_eq!(
        settings.channels,
        ["pytorch", "conda-forge", "nvidia", "defaults"]
    );
    let config = json!({
        key("conda_channels"): ["ours"], key("conda_full_env_update"): true,
        key("use_conda_base_env"): true, key("conda_env_as_base_docker"): true,
    });
    let settings = read(config.clone(), &[]).unwrap().conda;
    assert_eq!(settings.channels, ["ours"]);
    assert!(settings.full_env_update && settings.use_base_env && settings.as_base_docker);
    for (variable, value, base, docker) in [
        ("CLEARML_USE_CONDA_BASE_ENV", "0", false, true),
        ("CLEARML_DOCKER_IMAGE", "python:3", true, false),
        ("CLEARML_CONDA_ENV_PACKAGE", "/e.tar.gz", true, true),
    ] {
        let settings = read(config.clone(), &[(variable, value)]).unwrap().conda;
        assert_eq!(
            (settings.use_base_env, settings.as_base_docker),
            (base, docker),
            "{variable}"
        );
    }
}

#[test]
fn the_skip_variable_is_a_switch_or_an_interpreter() {
    for (value, skip) in [
        ("", SkipVenv::No),
        ("0", SkipVenv::No),
        ("True", SkipVenv::Yes),
        (
            "/opt/py/bin/python",
            SkipVenv::Into("/opt/py/bin/python".into()),
        ),
    ] {
        let env = [("CLEARML_AGENT_SKIP_PIP_VENV_INSTALL", value)];
        assert_eq!(read(json!({}), &env).unwrap().skip_venv, skip, "{value}");
    }
}

#[test]
fn a_wrong_value_is_named() {
    let error = read(json!({"agent.package_manager.force_upgrade": "maybe"}), &[]);
    assert_eq!(
        error.unwrap_err(),
        "agent.package_manager.force_upgrade: expected true or false, found \"maybe\""
    );
    let error = read(json!({}), &[("CLEARML_AGENT_FORCE_UV", "perhaps")]);
    assert!(error.unwrap_err().starts_with("CLEARML_AGENT_FORCE_UV"));
}

#[test]
fn index_urls_are_kept_as_secrets() {
    let config = json!({"agent.package_manager.extra_index_url": "https://u:pw@h/simple"});
    let env = [("PIP_INDEX_URL", "https://v:pw@h/simple")];
    let settings = read(config, &env).unwrap();
    assert_eq!(settings.indexes.extra_urls.len(), 1);
    assert!(!format!("{settings:?}").contains("pw@"));
}
