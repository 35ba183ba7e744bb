//! What a server of one user and one company has to say of itself: the `users`, `organization`,
//! `server` and `debug` services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::call::{Access, Call, Endpoint, endpoint};
use super::refusal::Refusal;
use super::store::Kind;
use super::{API_VERSION, COMPANY, COMPANY_NAME, SERVER_VERSION, USER_ID, USER_NAME};

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("debug.ping", "1.0", Access::Read, ping),
    endpoint("server.info", "2.12", Access::Read, info),
    endpoint("server.config", "1.0", Access::Read, config),
    endpoint(
        "users.get_current_user",
        "1.0",
        Access::Read,
        get_current_user,
    ),
    endpoint("users.get_all", "1.0", Access::Read, get_all_users),
    endpoint("users.get_all_ex", "1.0", Access::Read, get_all_users),
    endpoint("organization.get_tags", "2.8", Access::Read, get_tags),
];

fn ping(_: &Call<'_>) -> Result<Value, Refusal> {
    Ok(json!({"msg": "ClearML API server"}))
}

fn info(_: &Call<'_>) -> Result<Value, Refusal> {
    Ok(json!({
        "version": SERVER_VERSION, "build": "", "commit": "", "api_version": API_VERSION,
    }))
}

fn config(_: &Call<'_>) -> Result<Value, Refusal> {
    let message = "Forbidden (not allowed for role): role=user, allowed=(root, system)";
    Err(Refusal::new(403, 20, message))
}

fn get_current_user(_: &Call<'_>) -> Result<Value, Refusal> {
    Ok(json!({
        "user": {
            "id": USER_ID, "name": USER_NAME, "given_name": USER_NAME, "family_name": "",
            "role": "user", "company": {"id": COMPANY, "name": COMPANY_NAME},
        },
        "getting_started": null, "settings": {"max_download_items": 50000},
    }))
}

fn get_all_users(_: &Call<'_>) -> Result<Value, Refusal> {
    let user = json!({"id": USER_ID, "name": USER_NAME, "company": COMPANY});
    Ok(json!({"users": [user]}))
}

/// The tags of all tasks and models.
fn get_tags(call: &Call<'_>) -> Result<Value, Refusal> {
    let mut tags = BTreeSet::new();
    for kind in [Kind::Tasks, Kind::Models] {
        for document in call.transaction.all(kind)? {
            if let Some(Value::Array(found)) = document.get("tags") {
                tags.extend(found.iter().filter_map(|t| t.as_str().map(str::to_owned)));
            }
        }
    }
    Ok(json!({"tags": tags, "system_tags": []}))
}
