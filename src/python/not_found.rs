//! Why a package is not found: uv and pip pass over an index that refuses the credentials as if it
//! were empty, and pip over one that does not answer as it should.

use super::failure::Cause;
use super::requirements::normalise;
use super::settings::Settings;
use super::tool::mask;
use super::uv::client_for;
use crate::api::retry::is_retryable;

/// Asks the indexes themselves for the package that `tool` has not found. `None`: they do not have it.
pub(super) async fn why_not_found(
    requirement: &str,
    tool: &str,
    settings: &Settings,
) -> Option<Cause> {
    let end = requirement
        .find(['=', '<', '>', '!', '~', '[', ';', ' '])
        .unwrap_or(requirement.len());
    let name = normalise(&requirement[..end]);
    let by_pip = tool == "pip";
    let indexes = &settings.indexes;
    let main = match by_pip && !indexes.no_index {
        true => Some(indexes.main_url(&settings.environment)),
        false => indexes.url.clone(),
    };
    let mut trouble = false;
    for index in main.iter().chain(&indexes.extra_urls) {
        let page = format!("{}/{name}/", index.expose().trim_end_matches('/'));
        let Ok(page) = url::Url::parse(&page) else {
            continue;
        };
        let Ok(client) = client_for(&page, settings) else {
            continue;
        };
        let answer = client.get(page).send().await;
        match answer.map(|answer| answer.status().as_u16()) {
            Ok(401 | 403) => {
                return Some(Cause::Refused {
                    index: mask(index.expose()),
                    name: requirement.to_owned(),
                });
            }
            Ok(status) => trouble |= is_retryable(status),
            Err(_) => trouble = true,
        }
    }
    (by_pip && trouble).then_some(Cause::Network)
}
