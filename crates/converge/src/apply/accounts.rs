//! Users and groups, by the programs that know all files they are in.

use super::Error;
use crate::{file, program};
use model::plan::Action;
use model::spec::User;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(50);
/// From here on a user has a home that is made.
const FIRST_PERSON: u32 = 1000;

pub(super) async fn change(root: &Path, action: &Action) -> Result<bool, Error> {
    if is_so(root, action)? {
        return Ok(false);
    }
    match action {
        Action::PutGroup { name, gid } => {
            let gid = gid.to_string();
            let program = if line(root, "etc/group", name.as_str())?.is_some() {
                "groupmod"
            } else {
                "groupadd"
            };
            run(program, &["--gid", &gid, name.as_str()]).await?;
        }
        Action::SetMembers { name, group } => {
            let members: Vec<&str> = group.members.iter().map(|member| member.as_str()).collect();
            run("gpasswd", &["--members", &members.join(","), name.as_str()]).await?;
        }
        Action::PutUser { name, user } => put_user(root, name.as_str(), user).await?,
        Action::RemoveUser(name) => run("userdel", &[name.as_str()]).await?,
        Action::RemoveGroup(name) => run("groupdel", &[name.as_str()]).await?,
        _ => {}
    }
    if is_so(root, action)? { Ok(true) } else { Err(Error::Unchanged(action.to_string())) }
}

async fn put_user(root: &Path, name: &str, user: &User) -> Result<(), Error> {
    let is_there = line(root, "etc/passwd", name)?.is_some();
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let mut words = vec!["--uid", &uid, "--gid", &gid];
    words.extend(["--home-dir", user.home.as_str()].iter().filter(|_| !is_there));
    words.extend(["--home", user.home.as_str()].iter().filter(|_| is_there));
    words.extend(["--shell", user.shell.as_str(), "--comment", user.comment.as_str()]);
    if !is_there {
        words.push(if user.uid >= FIRST_PERSON { "--create-home" } else { "--no-create-home" });
    }
    words.push(name);
    run(if is_there { "usermod" } else { "useradd" }, &words).await
}

async fn run(program: &'static str, words: &[&str]) -> Result<(), Error> {
    let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    program::run(program, &words, WITHIN).await?;
    Ok(())
}

fn is_so(root: &Path, action: &Action) -> Result<bool, Error> {
    Ok(match action {
        Action::PutGroup { name, gid } => {
            let there = line(root, "etc/group", name.as_str())?;
            there.is_some_and(|there| there.get(2) == Some(&gid.to_string()))
        }
        Action::SetMembers { name, group } => {
            let there = line(root, "etc/group", name.as_str())?.unwrap_or_default();
            let there = there.get(3).cloned().unwrap_or_default();
            let there: BTreeSet<&str> =
                there.split(',').filter(|member| !member.is_empty()).collect();
            there == group.members.iter().map(|member| member.as_str()).collect()
        }
        Action::PutUser { name, user } => {
            let wanted = [
                &user.uid.to_string(),
                &user.gid.to_string(),
                user.comment.as_str(),
                user.home.as_str(),
                user.shell.as_str(),
            ];
            let there = line(root, "etc/passwd", name.as_str())?;
            there.is_some_and(|there| there.iter().skip(2).eq(wanted))
        }
        Action::RemoveUser(name) => line(root, "etc/passwd", name.as_str())?.is_none(),
        Action::RemoveGroup(name) => line(root, "etc/group", name.as_str())?.is_none(),
        _ => true,
    })
}

/// The fields of a name's first line.
fn line(root: &Path, list: &str, name: &str) -> Result<Option<Vec<String>>, Error> {
    let content = file::read(&root.join(list))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let mut lines = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
    Ok(lines.find(|fields| fields.first().is_some_and(|first| first == name)))
}
