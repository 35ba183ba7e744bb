//! Who runs inside: the container's user as numbers, and the home folder, by the image's own
//! `/etc/passwd` and `/etc/group`.

/// The user that the inner agent will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u64,
    pub gid: u64,
    pub home: String,
}

impl User {
    /// `wanted` is docker's form: `USER`, `USER:GROUP`, each a name or a number; empty for root. The
    /// error is the name that the image does not know.
    pub fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
        let (user, of_group) = match wanted.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
            None => (wanted, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let number: Option<u64> = user.parse().ok();
        let entry = rows(passwd).find(|row| match number {
            Some(uid) => row.get(2).and_then(|id| id.parse().ok()) == Some(uid),
            None => row.first() == Some(&user),
        });
        let field = |index: usize| entry.as_ref().and_then(|row| row.get(index).copied());
        let uid = number
            .or_else(|| field(2)?.parse().ok())
            .ok_or_else(|| format!("user {user}"))?;
        let gid = match of_group {
            Some(group_name) => group_name.parse().ok().or_else(|| {
                let row = rows(group).find(|row| row.first() == Some(&group_name))?;
                row.get(2)?.parse().ok()
            }),
            None => Some(field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0)),
        };
        let gid = gid.ok_or_else(|| format!("group {}", of_group.unwrap_or_default()))?;
        let usual = if uid == 0 { "/root" } else { "/" };
        Ok(User {
            uid,
            gid,
            home: field(5)
                .filter(|home| home.starts_with('/'))
                .unwrap_or(usual)
                .to_owned(),
        })
    }
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_as_the_engine_finds_them() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\napp:x:1001:1002::/home/app:/bin/sh\n";
        let group = "root:x:0:\nvideo:x:44:app\n";
        for (wanted, uid, gid, home) in [
            ("", 0, 0, "/root"),
            ("root", 0, 0, "/root"),
            ("app", 1001, 1002, "/home/app"),
            ("1001", 1001, 1002, "/home/app"),
            ("app:video", 1001, 44, "/home/app"),
            ("5000", 5000, 0, "/"),
            ("5000:6000", 5000, 6000, "/"),
            ("app:", 1001, 1002, "/home/app"),
        ] {
            let home = home.to_owned();
            let expected = User { uid, gid, home };
            assert_eq!(
                User::resolve(wanted, passwd, group),
                Ok(expected),
                "{wanted}"
            );
        }
        assert_eq!(
            User::resolve("", "", "").map(|u| u.home),
            Ok("/root".into())
        );
        for (wanted, unknown) in [("nobody", "user nobody"), ("app:none", "group none")] {
            assert_eq!(User::resolve(wanted, passwd, group), Err(unknown.into()));
        }
    }
}
