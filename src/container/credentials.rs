//! Who pulls an image: docker's own `config.json` says it, by itself (`auths`) or by a program that
//! keeps passwords (`credHelpers`, `credsStore`). What is found goes to the engine with the one pull.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use super::address::{DockerConfig, Variables};

/// How Docker Hub is called in `config.json`.
const HUB: &str = "https://index.docker.io/v1/";
/// A keeper of passwords may ask somebody who is not there.
const HELPER_LIMIT: Duration = Duration::from_secs(30);

/// Credentials for a registry, where there are any. The error says why a program that should know
/// them did not tell.
pub async fn for_registry(
    config: &DockerConfig,
    registry: &str,
    env: &Variables,
) -> Result<Option<DockerCredentials>, String> {
    let server = server_key(registry);
    if let Some(helper) = helper(config, server) {
        let answer = ask(&helper, server, env).await?;
        if answer.is_some() {
            return Ok(answer);
        }
    }
    Ok(stored(config, server))
}

fn server_key(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" => HUB,
        other => other,
    }
}

/// The name of the program that has this registry's password.
fn helper(config: &DockerConfig, server: &str) -> Option<String> {
    let json = config.json();
    let of_registry = json["credHelpers"].get(bare(server));
    let name = of_registry.unwrap_or(&json["credsStore"]).as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The host of a key, which may be written as an address.
fn bare(key: &str) -> &str {
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    host.split('/').next().unwrap_or(host)
}

fn stored(config: &DockerConfig, server: &str) -> Option<DockerCredentials> {
    let auths = config.json()["auths"].as_object()?;
    let entry = auths.get(server).or_else(|| {
        let same = |(key, _): &(&String, &serde_json::Value)| bare(key) == bare(server);
        auths.iter().find(same).map(|(_, entry)| entry)
    })?;
    let text = |name: &str| {
        entry[name]
            .as_str()
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
    };
    let pair = text("auth").and_then(|auth| {
        let plain = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
        let (user, password) = plain.trim_end_matches('\0').split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    });
    let (username, password) = match pair {
        Some((user, password)) => (Some(user), Some(password)),
        None => (text("username"), text("password")),
    };
    let identitytoken = text("identitytoken");
    if username.is_none() && identitytoken.is_none() {
        return None;
    }
    Some(DockerCredentials {
        username,
        password: password.filter(|_| identitytoken.is_none()),
        serveraddress: Some(server.to_owned()),
        identitytoken,
        ..DockerCredentials::default()
    })
}

/// What `docker-credential-NAME get` answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

async fn ask(
    helper: &str,
    server: &str,
    env: &Variables,
) -> Result<Option<DockerCredentials>, String> {
    let program = format!("docker-credential-{helper}");
    let failed = |cause: String| format!("{program} (named by docker's config.json): {cause}");
    let talk = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .env_clear()
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read has its answer ready.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_LIMIT, talk).await {
        Err(_) => return Err(failed("no answer".into())),
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
    };
    if !output.status.success() {
        // Its errors are on standard output, by convention.
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return match said.contains("credentials not found") {
            true => Ok(None),
            false => Err(failed(format!("{} {said}", output.status))),
        };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    let mut credentials = DockerCredentials {
        serveraddress: Some(server.to_owned()),
        ..DockerCredentials::default()
    };
    if answer.username == "<token>" {
        credentials.identitytoken = Some(answer.secret);
    } else {
        credentials.username = Some(answer.username);
        credentials.password = Some(answer.secret);
    }
    Ok(Some(credentials))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_credentials_are_found_by_registry() {
        let auth = BASE64_STANDARD.encode("me:p:w");
        let config = DockerConfig::of(json!({"auths": {
            "https://index.docker.io/v1/": {"auth": auth},
            "https://old.example.com/v2/": {"username": "u", "password": "pw"},
            "localhost:5000": {"auth": BASE64_STANDARD.encode("x:y"), "identitytoken": "it"},
            "empty.example.com": {},
        }}));
        for (registry, user, password, token) in [
            ("docker.io", Some("me"), Some("p:w"), None),
            ("old.example.com", Some("u"), Some("pw"), None),
            ("localhost:5000", Some("x"), None, Some("it")),
        ] {
            let found = stored(&config, server_key(registry)).unwrap();
            assert_eq!(found.username.as_deref(), user, "{registry}");
            assert_eq!(found.password.as_deref(), password, "{registry}");
            assert_eq!(found.identitytoken.as_deref(), token, "{registry}");
        }
        for registry in ["empty.example.com", "other.example.com"] {
            assert_eq!(stored(&config, registry), None);
        }
    }

    #[tokio::test]
    async fn a_program_that_keeps_passwords_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-keeper");
        let script = "#!/bin/sh\nread -r server || true\ncase $server in\n\
            known.example.com) printf '{\"ServerURL\":\"%s\",\"Username\":\"u\",\"Secret\":\"s3\"}' $server;;\n\
            token.example.com) printf '{\"Username\":\"<token>\",\"Secret\":\"tok\"}';;\n\
            broken.example.com) echo locked; exit 1;;\n\
            *) echo 'credentials not found in native keychain'; exit 1;;\nesac\n";
        std::fs::write(&program, script).unwrap();
        let mut mode = std::fs::metadata(&program).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let path = format!(
            "{}:{}",
            dir.path().display(),
            std::env::var("PATH").unwrap()
        );
        let env = Variables::from([("PATH".to_owned(), path)]);
        let config = DockerConfig::of(json!({
            "credsStore": "keeper",
            "credHelpers": {"other.example.com": "missing"},
            "auths": {"fallback.example.com": {"username": "f", "password": "pw"}},
        }));
        let user = |found: Option<DockerCredentials>| found.and_then(|f| f.username);
        let known = for_registry(&config, "known.example.com", &env)
            .await
            .unwrap();
        assert_eq!(user(known), Some("u".into()));
        let token = for_registry(&config, "token.example.com", &env)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(token.identitytoken.as_deref(), Some("tok"));
        let fallback = for_registry(&config, "fallback.example.com", &env)
            .await
            .unwrap();
        assert_eq!(user(fallback), Some("f".into()));
        assert_eq!(
            for_registry(&config, "none.example.com", &env).await,
            Ok(None)
        );
        for (registry, word) in [
            ("broken.example.com", "locked"),
            ("other.example.com", "missing"),
        ] {
            let error = for_registry(&config, registry, &env).await.unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
