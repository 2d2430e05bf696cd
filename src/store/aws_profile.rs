//! The shared AWS files (`~/.aws/credentials`, `~/.aws/config`), which `object_store` does not read.
//!
//! Format and order: "Configuration and credential file settings", AWS SDKs and Tools reference guide. Only static keys,
//! region and endpoint are taken; a profile that names a role, a process or single sign-on is refused by name rather than ignored.

use std::collections::HashMap;
use std::path::PathBuf;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};

use crate::error::{Error, IoContext, Kind, Result};

/// Fills in what neither the plan nor the environment gave.
pub(crate) fn complete(builder: AmazonS3Builder) -> Result<AmazonS3Builder> {
    let asked = std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    let profile = asked.clone().unwrap_or_else(|| "default".to_owned());
    let file = |variable: &str, name: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".aws").join(name)))
    };
    let credentials = read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
    let config = read(file("AWS_CONFIG_FILE", "config"))?;
    let mut settings = section(&config, &profile);
    if settings.is_empty() {
        settings = section(&config, &format!("profile {profile}"));
    }
    settings.extend(section(&credentials, &profile));
    fill(builder, &settings, asked.as_deref())
}

fn read(path: Option<PathBuf>) -> Result<String> {
    let Some(path) = path else { return Ok(String::new()) };
    match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        result => result.io_context(|| format!("cannot read {}", path.display())),
    }
}

fn fill(mut builder: AmazonS3Builder, settings: &HashMap<String, String>, asked: Option<&str>) -> Result<AmazonS3Builder> {
    let given = |builder: &AmazonS3Builder, key: Key| builder.get_config_value(&key).is_some();
    if !given(&builder, Key::Region)
        && !given(&builder, Key::DefaultRegion)
        && let Some(region) = settings.get("region")
    {
        builder = builder.with_region(region);
    }
    if !given(&builder, Key::Endpoint)
        && !given(&builder, Key::S3Endpoint)
        && let Some(endpoint) = settings.get("endpoint_url")
    {
        builder = builder.with_endpoint(endpoint);
    }
    let others = [Key::AccessKeyId, Key::WebIdentityTokenFile, Key::ContainerCredentialsRelativeUri, Key::ContainerCredentialsFullUri];
    if others.into_iter().any(|key| given(&builder, key)) {
        return Ok(builder);
    }
    match (settings.get("aws_access_key_id"), settings.get("aws_secret_access_key")) {
        (Some(access), Some(secret)) => {
            builder = builder.with_access_key_id(access).with_secret_access_key(secret);
            if let Some(token) = settings.get("aws_session_token") {
                builder = builder.with_token(token);
            }
            Ok(builder)
        }
        _ => match asked {
            Some(name) => Err(Error::new(Kind::Usage, format!("the AWS profile {name:?} has no static keys"))
                .hint("roles, processes and single sign-on of profiles are not supported: put the keys they yield into the environment")),
            None => Ok(builder),
        },
    }
}

/// The settings below `[name]`; a later line wins.
fn section(text: &str, name: &str) -> HashMap<String, String> {
    let mut inside = false;
    let mut settings = HashMap::new();
    for line in text.lines() {
        if line.starts_with(char::is_whitespace) {
            continue; // nested settings (`s3 =` …)
        }
        let line = line.trim_end();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default();
            inside = header.split_whitespace().eq(name.split_whitespace());
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            settings.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[default]\naws_access_key_id = AK1\naws_secret_access_key=s/1=\nregion = eu-1\ns3 =\n  region = no\n\n\
                        # [work]\n[ profile  work ]\nregion=eu-2\n; x=y\n[sso]\nsso_session = x\n";

    #[test]
    fn sections_are_read_as_the_reference_says() {
        let default = section(FILE, "default");
        assert_eq!(default["aws_secret_access_key"], "s/1=");
        assert_eq!(default["region"], "eu-1");
        assert_eq!(section(FILE, "profile work"), HashMap::from([("region".to_owned(), "eu-2".to_owned())]));
        assert!(section(FILE, "none").is_empty());
    }

    #[test]
    fn what_was_given_before_wins_and_a_named_profile_must_have_keys() {
        let settings = section(FILE, "default");
        let filled = fill(AmazonS3Builder::new(), &settings, None).unwrap();
        assert_eq!(filled.get_config_value(&Key::AccessKeyId).unwrap(), "AK1");
        assert_eq!(filled.get_config_value(&Key::Region).unwrap(), "eu-1");
        let given = AmazonS3Builder::new().with_access_key_id("MINE").with_secret_access_key("x").with_region("here");
        let filled = fill(given, &settings, None).unwrap();
        assert_eq!(filled.get_config_value(&Key::AccessKeyId).unwrap(), "MINE");
        assert_eq!(filled.get_config_value(&Key::SecretAccessKey).unwrap(), "x");
        assert_eq!(filled.get_config_value(&Key::Region).unwrap(), "here");
        let error = fill(AmazonS3Builder::new(), &section(FILE, "sso"), Some("sso")).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }
}
