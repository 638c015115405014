//! Pictures that a data set names by path or address, read when they are sent.
//!
//! What a data set names is not trusted: paths stay inside its folder, addresses inside the configured hosts, and the
//! dimensions are read from the header before anybody decodes the picture.

mod fetch;
mod folder;
mod format;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use self::fetch::Fetch;
use self::folder::Folder;
use super::{ErrorClass, OpenContext, Sent, TeacherError, binary};

/// Bytes of the largest picture that is sent: the limit of the hosted services lies at 5 to 50 MB a request.
const MAX_BYTES: usize = 20 << 20;

/// A picture as it is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Picture {
    /// `image/png`, `image/jpeg`, `image/webp` or `image/gif`, by content.
    pub(crate) media_type: &'static str,
    /// The file, unchanged.
    pub(crate) bytes: Vec<u8>,
}

impl Picture {
    /// The file in base64, with padding.
    pub(crate) fn base64(&self) -> String {
        BASE64.encode(&self.bytes)
    }

    /// A file that is in memory; `name` is what errors call it.
    ///
    /// # Errors
    /// A deterministic [`TeacherError`] where it is too large or no picture.
    pub(crate) fn new(bytes: Vec<u8>, name: &str) -> Result<Self, TeacherError> {
        if bytes.len() > MAX_BYTES {
            return Err(too_large(name));
        }
        let media_type = format::check(&bytes)
            .map_err(|(problem, advice)| refusal(name, &problem).advise(advice))?;
        Ok(Self { media_type, bytes })
    }

    /// The file of a `data:` address in base64.
    ///
    /// # Errors
    /// As [`Picture::new`], and where it is no such address.
    pub(crate) fn of_data_uri(uri: &str) -> Result<Self, TeacherError> {
        const NAME: &str = "data URI";
        let data = uri
            .strip_prefix("data:")
            .and_then(|rest| rest.split_once(";base64,"));
        let bytes = data.and_then(|(_, data)| binary::from_base64(data).ok());
        let bytes = bytes.ok_or_else(|| refusal(NAME, "it is no data URI in base64"))?;
        Self::new(bytes, NAME)
    }

    /// `data:<media type>;base64,<file>`
    pub(crate) fn data_uri(&self) -> String {
        format!("data:{};base64,{}", self.media_type, self.base64())
    }
}

/// Reads the pictures of one data set.
#[derive(Debug)]
pub(crate) struct Media {
    folder: Folder,
    fetch: Fetch,
    allows_inline: bool,
}

impl Media {
    /// A reader for the data set's folder and the configured hosts; nothing is opened yet.
    ///
    /// # Errors
    /// A [`TeacherError`] where the HTTP client cannot be set up.
    pub(crate) fn new(context: &OpenContext<'_>) -> Result<Self, TeacherError> {
        Ok(Self {
            folder: Folder::new(&context.data_folder),
            fetch: Fetch::new(&context.common.image_hosts)?,
            allows_inline: context.common.inline_images,
        })
    }

    /// The picture that a row names by a path in the data set's folder, or by an address.
    ///
    /// # Errors
    /// A deterministic [`TeacherError`] that names the picture where it is outside of what may be read, missing, too
    /// large, or no picture; an error that may pass where a host does not answer. `sent` tells how far a request for an
    /// address has got: `nothing` where it may not be fetched.
    pub(crate) async fn read(&self, name: &str) -> Result<Picture, TeacherError> {
        if self.allows_inline && name.starts_with("data:") {
            return Picture::of_data_uri(name);
        }
        let bytes = if name.starts_with("http://") || name.starts_with("https://") {
            self.fetch.read(name).await?
        } else {
            self.folder.read(name).await?
        };
        Picture::new(bytes, name).map_err(|error| error.having(Sent::Unusable))
    }
}

/// A refusal that names the picture. Of an address, what follows the path is left out: it may be a signature.
fn refusal(name: &str, problem: &str) -> TeacherError {
    let name = match name.split_once(['?', '#']) {
        Some((address, _)) if name.contains("://") => address,
        _ => name,
    };
    let name = without_credentials(name);
    let message = format!(
        "the picture `{}`: {}",
        crate::failures::shorten(&name, 200),
        super::http::shorten(problem)
    );
    TeacherError::new(ErrorClass::Deterministic, message)
}

/// An address without what stands before `@` in its authority.
fn without_credentials(name: &str) -> String {
    let Some((scheme, rest)) = name.split_once("://") else {
        return name.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn too_large(name: &str) -> TeacherError {
    refusal(name, &format!("it is larger than {} MiB", MAX_BYTES >> 20))
        .advise("scale the picture down: models read far fewer pixels than such a file holds")
}

#[cfg(test)]
pub(super) mod tests;
