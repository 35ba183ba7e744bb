//! What the command line and the configuration say of git.

use std::path::{Path, PathBuf};

use super::settings::SettingsError;
use crate::api::tls::Trust;
use crate::cli::ExecuteArgs;
use crate::config::{Config, Variables};
use crate::secret::Secret;
use crate::source::{ExtraCredential, GitCredentials, PasswordKind, Protocol, Servers};

/// All that is configured of git servers. They are trusted as the API server is.
pub(super) fn servers(
    args: &ExecuteArgs,
    config: &Config,
    trust: &Trust,
) -> Result<Servers, SettingsError> {
    let (ca_bundle, accept_any_certificate) = match trust {
        Trust::System => (None, false),
        Trust::Bundle(path) => (Some(path.clone()), false),
        Trust::Anything => (None, true),
    };
    Ok(Servers {
        credentials: credentials(args, config)?,
        protocol: protocol(config)?,
        ca_bundle,
        accept_any_certificate,
    })
}

/// `--git-user` and `--git-pass` come before the environment and the configuration, value by value.
fn credentials(args: &ExecuteArgs, config: &Config) -> Result<GitCredentials, SettingsError> {
    let typed_or_configured = |typed: &Option<String>, key| {
        let typed = typed.clone().filter(|value| !value.is_empty());
        typed.or_else(|| config.text(key))
    };
    let on = |key: &'static str| -> Result<bool, SettingsError> {
        Ok(config.flag(key)?.unwrap_or(false))
    };
    let entra = on("agent.git_use_ms_entra_token")?;
    let azure = on("agent.git_use_azure_pat")?;
    Ok(GitCredentials {
        user: typed_or_configured(&args.git_user, "agent.git_user"),
        password: typed_or_configured(&args.git_pass, "agent.git_pass").map(Secret::new),
        host: config.text("agent.git_host"),
        match_prefix: on("agent.git_host_match_prefix")?,
        extra: extra_credentials(config)?,
        // With both, the Python agent takes the token.
        kind: match (entra, azure) {
            (true, _) => PasswordKind::EntraToken,
            (false, true) => PasswordKind::AzurePat,
            (false, false) => PasswordKind::Basic,
        },
    })
}

/// `agent.git.extra_credentials`: a list of `{user, pass, host}`, or with the longer names. As for
/// the Python agent, an entry that is not complete is left out.
fn extra_credentials(config: &Config) -> Result<Vec<ExtraCredential>, SettingsError> {
    const KEY: &str = "agent.git.extra_credentials";
    let entries = match config.value(KEY) {
        None | Some(serde_json::Value::Null) => return Ok(Vec::new()),
        Some(serde_json::Value::Array(entries)) => entries,
        Some(_) => return Err(SettingsError::Value(format!("{KEY} is not a list"))),
    };
    let credential = |entry: &serde_json::Value| {
        let text = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| entry.get(name));
            let value = values.find_map(|value| match value {
                serde_json::Value::String(text) => Some(text.clone()),
                serde_json::Value::Number(number) => Some(number.to_string()),
                _ => None,
            });
            value.filter(|value| !value.trim().is_empty())
        };
        Some(ExtraCredential {
            user: text(&["user", "username"])?,
            password: Secret::new(text(&["pass", "password"])?),
            host: text(&["host"])?,
        })
    };
    let mut credentials = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        match credential(entry) {
            Some(credential) => credentials.push(credential),
            None => tracing::warn!("{KEY}: entry {index} has no user, pass or host: left out"),
        }
    }
    Ok(credentials)
}

fn protocol(config: &Config) -> Result<Protocol, SettingsError> {
    const PORT: &str = "agent.force_git_ssh_port";
    const SCHEME: &str = "agent.translate_ssl_replacement_scheme";
    let usual = Protocol::default();
    let text = |key| config.text(key).filter(|text| !text.trim().is_empty());
    let ssh_port = match text(PORT) {
        None => None,
        Some(port) => Some(port.trim().parse().map_err(|_| {
            SettingsError::Value(format!("{PORT} is {port:?}, which is no port: 1 to 65535"))
        })?),
    };
    let web_scheme = text(SCHEME).unwrap_or(usual.web_scheme);
    if !["https", "http"].contains(&web_scheme.as_str()) {
        return Err(SettingsError::Value(format!(
            "{SCHEME} is {web_scheme:?}: https or http"
        )));
    }
    Ok(Protocol {
        force_ssh: config
            .flag("agent.force_git_ssh_protocol")?
            .unwrap_or(usual.force_ssh),
        ssh_user: text("agent.force_git_ssh_user"),
        ssh_port,
        translate: config
            .flag("agent.translate_ssh")?
            .unwrap_or(usual.translate),
        web_scheme,
    })
}

fn variable<'v>(env: &'v Variables, name: &str) -> Option<&'v str> {
    let value = env.get(name).map(|value| value.trim());
    value.filter(|value| !value.is_empty())
}

pub(super) fn code_dir(env: &Variables) -> Option<PathBuf> {
    let folder = variable(env, "CLEARML_AGENT_FORCE_CODE_DIR")?;
    Some(match (folder.strip_prefix("~/"), env.get("HOME")) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => folder.into(),
    })
}

/// `[working_dir:]entry_point`.
pub(super) fn force_script(env: &Variables) -> Option<(String, String)> {
    let script = variable(env, "CLEARML_AGENT_FORCE_EXEC_SCRIPT")?;
    let (dir, entry) = script.split_once(':').unwrap_or((".", script));
    Some((dir.to_owned(), entry.to_owned()))
}
