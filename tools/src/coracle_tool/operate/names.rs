//! Named groups: what the cluster's directory has, and wishes for another one or for one less.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Common, Error, Node, show};

/// Groups that are asked for with one request.
const PAGE: usize = 256;

#[derive(Debug, Subcommand)]
pub(in super::super) enum Names {
    /// The named groups, by name.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 groups list --prefix orders/")]
    List(List),
    /// Makes a group; its members' nodes start it. Again with the same members and argument: it is there already.
    #[command(
        after_help = "Example:\n  coracle --node 127.0.0.1:8001 groups create orders --argument queue --members 1,2,3"
    )]
    Create(Create),
    /// Deletes a group, and all that is in it, on every member. Its name can be used again at once.
    #[command(after_help = "Example:\n  coracle --node 127.0.0.1:8001 groups delete orders")]
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(in super::super) struct List {
    /// Only names that begin so.
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// Groups that are shown, at most; 0: all.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(in super::super) struct Create {
    /// Its name: 1 to 255 bytes, no control characters.
    #[arg(value_name = "NAME")]
    name: String,
    /// Its members; all nodes of the cluster if none is named.
    #[arg(long, value_name = "NODE,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    members: Vec<u64>,
    /// What its machine is made of: the nodes' program knows what it means.
    #[arg(long, value_name = "TEXT", default_value = "")]
    argument: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(in super::super) struct Delete {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Only if it is the group of this uid.
    #[arg(long, value_name = "UID")]
    group: Option<u64>,
    #[command(flatten)]
    common: Common,
}

impl Names {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::List(list) => &list.common,
            Self::Create(create) => &create.common,
            Self::Delete(delete) => &delete.common,
        }
    }
}

impl Node {
    pub(super) fn names(&self, names: &Names) -> Result<(), Error> {
        match names {
            Names::List(list) => self.list_names(list),
            Names::Create(create) => {
                let (name, members) = (&create.name, &create.members);
                let body = json!({ "name": name, "members": members, "argument": create.argument });
                let done = self.ask("POST", "/api/names/create", Some(&body))?;
                let how = if done["is_new"] == true { "is made" } else { "was there already" };
                told(create.common, &done, || format!("{name} {how}: group {}", done["group"]))
            }
            Names::Delete(delete) => {
                let body = json!({ "name": delete.name, "group": delete.group });
                let done = self.ask("POST", "/api/names/delete", Some(&body))?;
                told(delete.common, &done, || format!("{} is deleted: group {}", delete.name, done["group"]))
            }
        }
    }

    fn list_names(&self, list: &List) -> Result<(), Error> {
        let (mut groups, mut after) = (Vec::new(), String::new());
        let left = |shown: usize| if list.limit == 0 { PAGE } else { list.limit - shown };
        let has_more = loop {
            let count = left(groups.len()).min(PAGE);
            let (prefix, from) = (escaped(&list.prefix), escaped(&after));
            let path = format!("/api/names?prefix={prefix}&after={from}&limit={count}");
            let mut page = self.ask("GET", &path, None)?;
            groups.extend(std::mem::take(&mut page["groups"]).as_array().cloned().unwrap_or_default());
            match page["next"].as_str() {
                Some(next) if left(groups.len()) > 0 => after = next.to_owned(),
                next => break next.is_some(),
            }
        };
        if list.common.json {
            writeln!(io::stdout(), "{}", json!({ "groups": groups, "has_more": has_more }))?;
        } else {
            show::names(&mut io::stdout().lock(), &groups)?;
        }
        if has_more {
            eprintln!("coracle: {} groups are shown; --limit 0 shows all", groups.len());
        }
        Ok(())
    }
}

fn told(common: Common, done: &Value, said: impl FnOnce() -> String) -> Result<(), Error> {
    match common.json {
        true => writeln!(io::stdout(), "{done}")?,
        false => writeln!(io::stdout(), "{}", said())?,
    }
    Ok(())
}

/// As a part of a query: everything but letters, digits and a few signs by its bytes.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => out.push(byte.into()),
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_by_their_bytes() {
        assert_eq!(escaped("orders/eu-1_x.y"), "orders/eu-1_x.y");
        assert_eq!(escaped("a b&c=ä%"), "a%20b%26c%3D%C3%A4%25");
    }
}
