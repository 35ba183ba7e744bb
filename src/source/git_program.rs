//! git itself, where it is installed: for servers that want what libgit2 has not (client certificates,
//! Kerberos, headers and cookies of the user's configuration, protocol 2), and as the base of Git LFS.

use std::process::Command;

use git2::Repository;

use super::credentials::Login;
use super::network::{Get, Network};
use super::program;
use super::ssh::on_path;
use super::url::{Address, Transport};

/// Fetches as [`Network::fetch`] does. Nothing where there is no git; the error is what git said.
pub(super) fn fetch(
    network: &Network<'_>,
    into: &Repository,
    way: &Address,
    get: Get<'_>,
) -> Option<Result<Option<String>, String>> {
    let git = on_path(network.env, "git")?;
    let run = |arguments: &[&str], refspecs: &[&str]| -> Result<Vec<u8>, String> {
        let mut command = Command::new(&git);
        command
            .args(arguments)
            .args(["--", way.text()])
            .args(refspecs)
            .current_dir(into.path());
        // The cache may belong to somebody else, as for libgit2.
        let owner = ("safe.directory".to_owned(), "*".to_owned());
        let no_hooks = ("core.hooksPath".to_owned(), "/dev/null".to_owned());
        set_up(&mut command, network, way, way, vec![owner, no_hooks]);
        command.env("GIT_DIR", ".");
        let finished =
            program::run(command, b"", network.stop, &|_| {}).map_err(|error| error.to_string())?;
        match finished.success {
            true => Ok(finished.output),
            false => Err(complaint(&finished.errors)),
        }
    };
    let mut arguments = vec![
        "fetch",
        "--quiet",
        "--force",
        "--no-tags",
        "--no-write-fetch-head",
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

/// The lines that say what is wrong; without any, the last one.
fn complaint(said: &[String]) -> String {
    let marked = |line: &&String| line.starts_with("fatal: ") || line.starts_with("error: ");
    let lines: Vec<&str> = said.iter().filter(marked).map(String::as_str).collect();
    match lines.as_slice() {
        [] => said.last().cloned().unwrap_or_default(),
        lines => lines.join("; "),
    }
}

/// The environment for git and `git lfs`: how to reach the server and who we are, in variables of this
/// process alone. `address` is meant where the repository says so, `way` is taken.
pub(super) fn set_up(
    command: &mut Command,
    network: &Network<'_>,
    address: &Address,
    way: &Address,
    mut settings: Vec<(String, String)>,
) {
    let env = network.env;
    command
        .env_clear()
        .envs(env)
        .env("GIT_TERMINAL_PROMPT", "0");
    if !env.contains_key("GIT_SSH_COMMAND") && !env.contains_key("GIT_SSH") {
        command.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
    }
    if way != address {
        settings.push((
            format!("url.{}.insteadOf", way.text()),
            address.text().to_owned(),
        ));
    }
    if let Some(bundle) = network.ca_bundle {
        settings.push(("http.sslCAInfo".into(), bundle.display().to_string()));
    }
    if network.accept_any_certificate {
        settings.push(("http.sslVerify".into(), "false".into()));
    }
    if let Some(Login { user, password, .. }) = network.logins(way).into_iter().next() {
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
        settings.push((
            helper,
            "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \
             \"$CLEARML_GIT_LOGIN_USER\" \"$CLEARML_GIT_LOGIN_PASS\"; }; f"
                .to_owned(),
        ));
        command
            .env("CLEARML_GIT_LOGIN_USER", user)
            .env("CLEARML_GIT_LOGIN_PASS", password.expose());
    }
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
