//! git itself, where it is installed: for servers that want what libgit2 has not (client certificates,
//! Kerberos, headers and cookies of the user's configuration, protocol 2), and as the base of Git LFS.

use std::process::{Command, Stdio};

use git2::Repository;

use super::credentials::Login;
use super::network::{Get, Network};
use super::program;
use super::ssh::on_path;
use super::url::{Address, Transport};
use crate::config::{Variables, is_for_the_job};

/// Fetches as [`Network::fetch`] does. Nothing where there is no git; the error is what git said.
pub(super) fn fetch(
    network: &Network<'_>,
    into: &Repository,
    way: &Address,
    get: Get<'_>,
) -> Option<Result<Option<String>, String>> {
    let git = on_path(network.env, "git")?;
    let run_trusting = |trusted, arguments: &[&str], refspecs: &[&str]| {
        let mut command = Command::new(&git);
        command
            .args(arguments)
            .args(["--", way.text()])
            .args(refspecs)
            .current_dir(into.path());
        set_up(&mut command, network, way, way, trusted, Vec::new());
        command.env("GIT_DIR", ".");
        let finished =
            program::run(command, b"", network.stop, &|_| {}).map_err(|error| error.to_string())?;
        match finished.success {
            true => Ok(finished.output),
            false => Err(complaint(&finished.errors)),
        }
    };
    let run = |arguments: &[&str], refspecs: &[&str]| -> Result<Vec<u8>, String> {
        let by_machine = run_trusting(Trusted::ByMachine, arguments, refspecs);
        match by_machine {
            Err(said) if network.ca_bundle.is_some() && said.contains("certificate") => {
                run_trusting(Trusted::AsConfigured, arguments, refspecs)
            }
            result => result,
        }
    };
    let mut arguments = vec![
        "fetch",
        "--quiet",
        "--force",
        "--no-tags",
        "--no-write-fetch-head",
        "--update-shallow",
    ];
    let alone;
    let (refspecs, prune) = match get {
        Get::References { refspecs, prune } => (refspecs, prune),
        Get::Alone(commit) => {
            arguments.push("--depth=1");
            alone = format!("+{commit}:refs/commits/{commit}");
            (&[alone.as_str()][..], false)
        }
    };
    arguments.extend(prune.then_some("--prune"));
    Some(run(&arguments, refspecs).and_then(|_| {
        if !prune {
            return Ok(None);
        }
        let answer = run(&["ls-remote", "--quiet", "--symref"], &["HEAD"])?;
        let answer = String::from_utf8_lossy(&answer);
        let mut names = answer.lines().filter_map(|line| line.strip_prefix("ref: "));
        let name = names.next().and_then(|rest| rest.split('\t').next());
        Ok(name.map(str::to_owned))
    }))
}

/// With these set, git's configuration is not what libgit2 reads.
const MORE_CONFIGURATION: [&str; 4] = [
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
];

/// What git answers to a question about its configuration. Nothing where libgit2 knows that as well, or
/// there is no git.
pub(super) fn answer(env: &Variables, arguments: &[&str]) -> Option<Option<String>> {
    if !MORE_CONFIGURATION
        .iter()
        .any(|name| env.contains_key(*name))
    {
        return None;
    }
    let mut command = Command::new(on_path(env, "git")?);
    command
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .envs(env);
    for name in OF_ANOTHER_REPOSITORY {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim_end_matches('\n');
    Some((output.status.success() && !text.is_empty()).then(|| text.to_owned()))
}

/// The lines that say what is wrong; without any, the last one.
pub(super) fn complaint(said: &[String]) -> String {
    let marked = |line: &&String| line.starts_with("fatal: ") || line.starts_with("error: ");
    let lines: Vec<&str> = said.iter().filter(marked).map(String::as_str).collect();
    match lines.as_slice() {
        [] => said.last().cloned().unwrap_or_default(),
        lines => lines.join("; "),
    }
}

/// With these set, git would work on another repository than the one at hand. A hook or an alias of
/// git that started the agent has set them.
pub(super) const OF_ANOTHER_REPOSITORY: [&str; 12] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
    "GIT_REPLACE_REF_BASE",
    "GIT_CEILING_DIRECTORIES",
];
/// The environment for git where it needs no server. The filters of the user's configuration see it.
pub(super) fn on_this_machine(command: &mut Command, env: &Variables) {
    with_settings(command, env, Vec::new());
    // Logins are for servers; what works on this machine's files alone has no business with them.
    for name in env.keys().filter(|name| !is_for_the_job(name)) {
        command.env_remove(name);
    }
}

/// `env` with these settings, in variables of this process alone.
fn with_settings(command: &mut Command, env: &Variables, mut settings: Vec<(String, String)>) {
    command
        .env_clear()
        .envs(env)
        .env("GIT_TERMINAL_PROMPT", "0");
    for name in OF_ANOTHER_REPOSITORY {
        command.env_remove(name);
    }
    let always = [
        // The folder may belong to somebody else, as for libgit2.
        ("safe.directory", "*"),
        // Hooks, watchers and tidying are for the user's own work. They would inherit what the
        // environment holds, and go on when the mirror's lock is gone.
        ("core.hooksPath", "/dev/null"),
        ("core.fsmonitor", "false"),
        ("gc.auto", "0"),
        ("maintenance.auto", "false"),
        // A server that says nothing for so long (seconds) is given up.
        ("http.lowSpeedLimit", "1"),
        ("http.lowSpeedTime", "60"),
    ];
    settings.extend(always.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let before = env
        .get("GIT_CONFIG_COUNT")
        .and_then(|count| count.trim().parse().ok());
    let before: usize = before.unwrap_or(0);
    command.env("GIT_CONFIG_COUNT", (before + settings.len()).to_string());
    for (number, (key, value)) in settings.into_iter().enumerate() {
        let number = before + number;
        command.env(format!("GIT_CONFIG_KEY_{number}"), key);
        command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
}

/// A credential helper that gives the login in `NAME_USER` and `NAME_PASS`. git has a shell run it; the
/// values come by the environment, whatever is in them.
pub(super) fn login_helper(name: &str) -> String {
    format!(
        "!f() {{ test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \
         \"${name}_USER\" \"${name}_PASS\"; }}; f"
    )
}

/// Whose certificate authorities are trusted. git takes one bundle in the place of another, and the one
/// that is configured may hold those of the API server alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trusted {
    ByMachine,
    AsConfigured,
}

/// The environment for git and `git lfs` where they talk to a server: how to reach it and who we are.
/// `address` is meant where the repository says so, `way` is taken.
pub(super) fn set_up(
    command: &mut Command,
    network: &Network<'_>,
    address: &Address,
    way: &Address,
    trusted: Trusted,
    mut settings: Vec<(String, String)>,
) {
    let env = network.env;
    let mut variables: Vec<(String, String)> = Vec::new();
    if let Some(ssh) = network.ssh_command() {
        variables.push(("GIT_SSH_COMMAND".into(), ssh.to_owned()));
    }
    if way != address {
        settings.push((
            format!("url.{}.insteadOf", way.text()),
            address.text().to_owned(),
        ));
    }
    if let (Some(bundle), Trusted::AsConfigured) = (network.ca_bundle, trusted) {
        settings.push(("http.sslCAInfo".into(), bundle.display().to_string()));
    }
    if network.accept_any_certificate {
        settings.push(("http.sslVerify".into(), "false".into()));
    }
    // For what is elsewhere: a server of Git LFS, or one that the repository has moved to.
    if !network.credentials.is_bearer() {
        let places = network.credentials.by_place(&[way]);
        for (number, (place, login)) in places.into_iter().enumerate() {
            let name = format!("CLEARML_GIT_LOGIN_{number}");
            let helper = format!("credential.{place}.helper");
            settings.push((helper.clone(), String::new()));
            settings.push((helper, login_helper(&name)));
            variables.push((format!("{name}_USER"), login.user));
            variables.push((format!("{name}_PASS"), login.password.expose().to_owned()));
        }
    }
    let is_web = matches!(way.transport, Transport::Http | Transport::Https);
    let login = network.logins(way).into_iter().next();
    if let Some(Login { user, password, .. }) = login.filter(|_| is_web) {
        let scheme = match way.transport {
            Transport::Http => "http",
            _ => "https",
        };
        let host = way.host.as_deref().unwrap_or_default();
        let port = way.port.map_or_else(String::new, |port| format!(":{port}"));
        let server = format!("{scheme}://{host}{port}");
        if let Some(header) = network.bearer(way) {
            settings.push((
                format!("http.{server}.extraHeader"),
                header.expose().to_owned(),
            ));
            // git would send it to wherever the server points, too.
            settings.push(("http.followRedirects".into(), "false".into()));
        }
        let helper = format!("credential.{server}.helper");
        // The first one takes those away that are configured for everything.
        settings.push((helper.clone(), String::new()));
        settings.push((helper, login_helper("CLEARML_GIT_LOGIN")));
        variables.push(("CLEARML_GIT_LOGIN_USER".into(), user));
        variables.push((
            "CLEARML_GIT_LOGIN_PASS".into(),
            password.expose().to_owned(),
        ));
    }
    with_settings(command, env, settings);
    command.envs(variables);
}
