//! The proxies that docker's own configuration has for containers (`proxies` in `config.json`): docker's
//! client gives them to each container that it creates, so that people count on them.

use bollard::models::ContainerCreateBody;

use super::address::DockerConfig;

/// Adds the variables for the engine at `host` (`unix:///var/run/docker.sock`), in capitals and not,
/// where the arguments do not name them.
pub fn add(body: &mut ContainerCreateBody, config: &DockerConfig, host: &str) {
    let proxies = &config.json()["proxies"];
    let proxies = proxies.get(host).unwrap_or(&proxies["default"]);
    let env = body.env.get_or_insert_default();
    for (key, variable) in [
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ] {
        let Some(proxy) = proxies[key].as_str().filter(|text| !text.is_empty()) else {
            continue;
        };
        for name in [variable.to_owned(), variable.to_lowercase()] {
            let is_given = |entry: &String| entry.split('=').next() == Some(&name);
            if !env.iter().any(is_given) {
                env.push(format!("{name}={proxy}"));
            }
        }
    }
}
