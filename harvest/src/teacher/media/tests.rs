//! Pictures of the test folder and of a server on a real socket.

use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;

use super::*;
use crate::config::{CommonConfig, RunConfig};
use crate::stop::Stop;

/// A PNG of one red pixel.
pub(in crate::teacher) const RED_PIXEL: [u8; 69] = [
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x02, 0x00, 0x00, 0x00, 0x90, 0x77, 0x53,
    0xde, 0x00, 0x00, 0x00, 0x0c, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0xf8, 0xcf, 0xc0, 0x00,
    0x00, 0x03, 0x01, 0x01, 0x00, 0xc9, 0xfe, 0x92, 0xef, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e,
    0x44, 0xae, 0x42, 0x60, 0x82,
];

fn task() -> schemas::Task {
    schemas::Task::builtin("sst2").unwrap()
}

/// Reads pictures of `folder` and of `hosts`.
pub(in crate::teacher) fn media(folder: &Path, hosts: &[String]) -> Media {
    let common = CommonConfig {
        image_hosts: hosts.to_vec(),
        ..CommonConfig::default()
    };
    let context = OpenContext {
        common: &common,
        run: &RunConfig::default(),
        task: &task(),
        data_folder: folder.to_owned(),
        state_folder: folder.to_owned(),
        watch: crate::reporter::Watch::default(),
        stop: Stop::default(),
    };
    Media::new(&context).unwrap()
}

async fn refused(media: &Media, name: &str) -> (ErrorClass, String) {
    let error = media.read(name).await.unwrap_err();
    assert!(error.advice.is_some() || error.is_retryable(), "{error}");
    (error.class, error.message)
}

#[tokio::test]
async fn a_path_of_the_folder_becomes_a_data_uri() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("a")).unwrap();
    // The extension lies; the content counts.
    std::fs::write(folder.path().join("a/red.jpg"), RED_PIXEL).unwrap();
    let media = media(folder.path(), &[]);
    let picture = media.read("./a/red.jpg").await.unwrap();
    assert_eq!(picture.media_type, "image/png");
    assert_eq!(picture.bytes, RED_PIXEL);
    let uri = picture.data_uri();
    let (head, data) = uri.split_once(',').unwrap();
    assert_eq!(head, "data:image/png;base64");
    assert_eq!(data, picture.base64());
    assert_eq!(BASE64.decode(data).unwrap(), RED_PIXEL);
}

#[tokio::test]
async fn no_path_leads_out_of_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("data");
    std::fs::create_dir_all(folder.join("inner")).unwrap();
    std::fs::write(outer.path().join("secret.png"), RED_PIXEL).unwrap();
    std::fs::write(folder.join("inner/red.png"), RED_PIXEL).unwrap();
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
    };
    link("../secret.png", "out.png");
    link("..", "up");
    link("inner/red.png", "in.png");
    link("loop.png", "loop.png");
    let media = media(&folder, &[]);
    media.read("in.png").await.unwrap();
    let absolute = outer.path().join("secret.png").display().to_string();
    for (name, problem) in [
        (
            absolute.as_str(),
            "the path does not stay in the data set's folder",
        ),
        (
            "../secret.png",
            "the path does not stay in the data set's folder",
        ),
        (
            "inner/../../secret.png",
            "the path does not stay in the data set's folder",
        ),
        ("", "the path does not stay in the data set's folder"),
        (
            "out.png",
            "a symbolic link leads out of the data set's folder",
        ),
        (
            "up/secret.png",
            "a symbolic link leads out of the data set's folder",
        ),
        (
            "loop.png",
            "it cannot be read: Too many levels of symbolic links (os error 40)",
        ),
        (
            "file:///etc/passwd",
            "it is an address of a scheme that is not read",
        ),
        (
            "missing.png",
            "it cannot be read: No such file or directory (os error 2)",
        ),
        ("inner", "it is no file"),
    ] {
        let expected = format!("the picture `{name}`: {problem}");
        assert_eq!(
            refused(&media, name).await,
            (ErrorClass::Deterministic, expected)
        );
    }
}

/// A PNG that announces these dimensions.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut png = RED_PIXEL.to_vec();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32fast::hash(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());
    png
}

#[tokio::test]
async fn content_decides_and_bombs_are_refused_by_their_header() {
    let folder = tempfile::tempdir().unwrap();
    let encoded = |format| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(3, 2)
            .write_to(&mut bytes, format)
            .unwrap();
        bytes.into_inner()
    };
    let gif = |width: u16, height: u16| {
        let (w, h) = (width.to_le_bytes(), height.to_le_bytes());
        [b"GIF89a".as_slice(), &w, &h, &[0, 0, 0, 0x3b]].concat()
    };
    let media = media(folder.path(), &[]);
    for (bytes, expected) in [
        (encoded(image::ImageFormat::Jpeg), Ok("image/jpeg")),
        (encoded(image::ImageFormat::WebP), Ok("image/webp")),
        (encoded(image::ImageFormat::Png), Ok("image/png")),
        (gif(1, 1), Ok("image/gif")),
        (png_of(8192, 8192), Ok("image/png")),
        (png_of(100_000, 100_000), Err("announces 100000 by 100000")),
        (gif(65_535, 65_535), Err("announces 65535 by 65535")),
        (gif(0, 1), Err("has no pixel")),
        (b"GIF89a".to_vec(), Err("its header cannot be read")),
        (RED_PIXEL[..20].to_vec(), Err("its header cannot be read")),
        (b"<svg/>".to_vec(), Err("none of PNG, JPEG, WebP and GIF")),
        (Vec::new(), Err("none of PNG, JPEG, WebP and GIF")),
        (vec![0; MAX_BYTES + 1], Err("it is larger than 20 MiB")),
    ] {
        std::fs::write(folder.path().join("a.png"), &bytes).unwrap();
        match (media.read("a.png").await, expected) {
            (Ok(picture), Ok(media_type)) => assert_eq!(picture.media_type, media_type),
            (Err(error), Err(problem)) => {
                assert!(error.message.contains(problem), "{error}");
                assert!(error.message.contains("`a.png`"), "{error}");
                assert_eq!(error.class, ErrorClass::Deterministic);
                assert!(error.advice.is_some());
            }
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }
}

async fn serve() -> SocketAddr {
    let missing = || async { axum::http::StatusCode::FORBIDDEN };
    let busy = || async { axum::http::StatusCode::SERVICE_UNAVAILABLE };
    let app = Router::new()
        .route("/red", get(|| async { RED_PIXEL.to_vec() }))
        .route("/here", get(|| async { Redirect::to("/red") }))
        .route(
            "/away",
            get(|| async { Redirect::to("http://other.example/red") }),
        )
        .route("/loop", get(|| async { Redirect::to("/loop") }))
        .route("/large", get(|| async { vec![0; MAX_BYTES + 1] }))
        .route("/forbidden", get(missing))
        .route("/busy", get(busy));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

#[tokio::test]
async fn addresses_are_fetched_from_configured_hosts_only() {
    let address = serve().await;
    let folder = tempfile::tempdir().unwrap();
    let media = media(folder.path(), &[address.to_string()]);
    for path in ["red", "red?signature=s", "here"] {
        let picture = media.read(&format!("http://{address}/{path}")).await;
        assert_eq!(picture.unwrap().bytes, RED_PIXEL);
    }
    for (name, class, problem) in [
        (
            "away",
            ErrorClass::Deterministic,
            "redirects to `other.example`",
        ),
        ("loop", ErrorClass::Deterministic, "too many redirects"),
        ("large", ErrorClass::Deterministic, "larger than 20 MiB"),
        ("forbidden", ErrorClass::Deterministic, "403 Forbidden"),
        ("busy", ErrorClass::Transient, "503 Service Unavailable"),
    ] {
        let (found, message) =
            refused(&media, &format!("http://{address}/{name}?key=s3cret")).await;
        assert_eq!(found, class, "{message}");
        assert!(message.contains(problem), "{message}");
        assert!(message.contains(&format!("{address}/{name}`")), "{message}");
        assert!(!message.contains("s3cret"), "{message}");
    }
}

#[tokio::test]
async fn other_hosts_ports_and_credentials_are_refused_unsent() {
    let folder = tempfile::tempdir().unwrap();
    let none = media(folder.path(), &[]);
    let some = media(folder.path(), &["Pictures.example".to_owned()]);
    let refusal = |host: &str| format!("pictures are not fetched from the host `{host}`");
    for (media, name, problem) in [
        (
            &none,
            "https://pictures.example/a",
            refusal("pictures.example"),
        ),
        (&some, "https://other.example/a", refusal("other.example")),
        (
            &some,
            "https://pictures.example:8443/a",
            refusal("pictures.example:8443"),
        ),
        (
            &some,
            "https://pictures.example.evil.example/a",
            refusal("pictures.example.evil.example"),
        ),
        (
            &some,
            "https://pictures.example@127.0.0.1/a",
            "an address carries no user or password".to_owned(),
        ),
        (
            &some,
            "https://me:s3cret@pictures.example/a",
            "an address carries no user or password".to_owned(),
        ),
        (&some, "https://[", "it is no address".to_owned()),
    ] {
        let (class, message) = refused(media, name).await;
        assert_eq!(class, ErrorClass::Deterministic);
        assert!(message.contains(&problem), "{message}");
        assert!(!message.contains("s3cret"), "{message}");
    }
}

proptest::proptest! {
    #[test]
    fn no_content_makes_the_header_reader_panic(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        for head in [b"\x89PNG\r\n\x1a\n".as_slice(), b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a"] {
            let _ = format::check(&[head, &tail].concat());
        }
    }
}
