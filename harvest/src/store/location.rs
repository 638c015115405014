//! Locations: what a text in a configuration or on the command line means.

use std::path::PathBuf;

use object_store::path::Path as ObjectPath;

use super::error::StoreError;

/// Where a store lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Location {
    /// A folder, absolute or relative.
    Folder(PathBuf),
    /// A prefix of an object store.
    Remote(Address),
}

/// The protocol of an object store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Provider {
    S3,
    Google,
    Azure,
}

/// A prefix of an object store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Address {
    pub(super) provider: Provider,
    pub(super) bucket: String,
    pub(super) prefix: ObjectPath,
}

impl Address {
    fn scheme(&self) -> &'static str {
        match self.provider {
            Provider::S3 => "s3",
            Provider::Google => "gs",
            Provider::Azure => "az",
        }
    }

    /// The address as text, without a slash at its end.
    pub(super) fn text(&self) -> String {
        let text = format!("{}://{}/{}", self.scheme(), self.bucket, self.prefix);
        text.trim_end_matches('/').to_owned()
    }
}

const FORMS: &str = "write a path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";

impl Location {
    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        let refuse = |location: &str, problem: &str, hint: &str| {
            Err(StoreError {
                location: location.to_owned(),
                problem: problem.to_owned(),
                hint: hint.to_owned(),
            })
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            if text.is_empty() {
                return refuse(text, "it is empty", FORMS);
            }
            return Ok(Self::Folder(text.into()));
        };
        let provider = match scheme {
            "s3" => Provider::S3,
            "gs" => Provider::Google,
            "az" => Provider::Azure,
            _ => return refuse(&format!("{scheme}://..."), "no such kind of store", FORMS),
        };
        if rest.contains(['@', '?', '#']) {
            return refuse(
                &format!("{scheme}://..."),
                "an address carries no user, key or query",
                "give credentials in the environment; docs/stores.md names the variables",
            );
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(valid) {
            return refuse(text, "it names no bucket", FORMS);
        }
        let prefix = prefix.trim_end_matches('/');
        match ObjectPath::parse(prefix) {
            Ok(path) if path.as_ref() == prefix => Ok(Self::Remote(Address {
                provider,
                bucket: bucket.to_owned(),
                prefix: path,
            })),
            _ => refuse(
                text,
                "its prefix has an empty part, a `.` or a `..`",
                "write names with a single slash between them",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(location: &str) -> String {
        match Location::parse(location).unwrap() {
            Location::Folder(folder) => folder.display().to_string(),
            Location::Remote(address) => address.text(),
        }
    }

    #[test]
    fn a_location_is_a_path_or_an_address() {
        for location in [
            "cache",
            "/data/cache",
            "../a b",
            "s3://b/a/b",
            "gs://b",
            "az://c/x",
        ] {
            assert_eq!(text_of(location), location);
        }
        assert_eq!(text_of("s3://bucket/"), "s3://bucket");
        assert_eq!(text_of("s3://bucket/a/"), "s3://bucket/a");
    }

    #[test]
    fn what_is_neither_is_refused() {
        for (location, problem) in [
            ("", "empty"),
            ("https://host/bucket", "no such kind"),
            ("s3a://bucket", "no such kind"),
            ("s3://", "no bucket"),
            ("s3:///prefix", "no bucket"),
            ("s3://bucket//a", "empty part"),
            ("s3://bucket/../a", "`..`"),
        ] {
            let error = Location::parse(location).unwrap_err();
            assert!(error.to_string().contains(problem), "{location}: {error}");
        }
    }

    #[test]
    fn credentials_in_an_address_are_refused_without_repeating_them() {
        for location in [
            "s3://key:hunter2@bucket/a",
            "az://container/a?sig=hunter2",
            "ftp://user:hunter2@host",
        ] {
            let error = Location::parse(location).unwrap_err();
            let told = format!("{error} {error:?} {}", error.hint);
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
