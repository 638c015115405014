//! Reads one `.npy` file of floats (NumPy enhancement proposal 1, format versions 1.0, 2.0 and 3.0).

/// The values of a `.npy` file, flattened in C order.
///
/// # Errors
/// A sentence that says why the bytes are no array of little-endian f2, f4 or f8 in C order.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<f32>, String> {
    let rest = bytes
        .strip_prefix(b"\x93NUMPY")
        .ok_or("it is no .npy file")?;
    let truncated = || "its header is cut off".to_owned();
    let ([major, _minor], rest) = rest.split_first_chunk::<2>().ok_or_else(truncated)?;
    let (length, rest) = match major {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(truncated)?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        other => {
            return Err(format!(
                "it has .npy format version {other}, which is unknown"
            ));
        }
    };
    let (header, data) = rest.split_at_checked(length).ok_or_else(truncated)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    values(&Header::parse(header)?, data)
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads the Python dictionary literal of the header.
    fn parse(text: &str) -> Result<Self, String> {
        let after = |key: &str| -> Result<&str, String> {
            let position = [format!("'{key}':"), format!("\"{key}\":")]
                .iter()
                .find_map(|key| Some(text.find(key)? + key.len()));
            Ok(text[position.ok_or_else(|| format!("its header lacks `{key}`"))?..].trim_start())
        };
        let descr = after("descr")?;
        let descr = match descr.chars().next() {
            Some(quote @ ('\'' | '"')) => descr[1..].split(quote).next().unwrap_or_default(),
            _ => return Err("it holds a structured array, not plain floats".into()),
        };
        let fortran_order = after("fortran_order")?.starts_with("True");
        let shape = after("shape")?
            .strip_prefix('(')
            .and_then(|rest| rest.split_once(')'))
            .ok_or("its shape is unreadable")?
            .0;
        let shape = shape
            .split(',')
            .map(str::trim)
            .filter(|size| !size.is_empty());
        let shape = shape.map(|size| {
            size.parse()
                .map_err(|_| format!("its shape has the size `{size}`"))
        });
        Ok(Self {
            descr: descr.to_owned(),
            fortran_order,
            shape: shape.collect::<Result<_, _>>()?,
        })
    }
}

fn values(header: &Header, data: &[u8]) -> Result<Vec<f32>, String> {
    if header.fortran_order && header.shape.iter().filter(|&&size| size > 1).count() > 1 {
        return Err(format!(
            "its shape {:?} is in Fortran order: save it with numpy.ascontiguousarray",
            header.shape
        ));
    }
    let width = match header.descr.as_str() {
        "<f2" => 2,
        "<f4" => 4,
        "<f8" => 8,
        other => {
            return Err(format!(
                "its values have type `{other}`: save little-endian f2, f4 or f8"
            ));
        }
    };
    let num_values = header
        .shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size));
    if num_values.and_then(|num| num.checked_mul(width)) != Some(data.len()) {
        return Err(format!(
            "its shape {:?} of {} does not fill its {} bytes",
            header.shape,
            header.descr,
            data.len()
        ));
    }
    Ok(match width {
        2 => data
            .as_chunks()
            .0
            .iter()
            .map(|chunk| half::f16::from_le_bytes(*chunk).to_f32())
            .collect(),
        4 => data
            .as_chunks()
            .0
            .iter()
            .map(|chunk| f32::from_le_bytes(*chunk))
            .collect(),
        _ => data
            .as_chunks()
            .0
            .iter()
            .map(|chunk| f64::from_le_bytes(*chunk) as f32)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn every_version_and_float_is_read() {
        let f4: Vec<u8> = [1.5_f32, -2.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let f8: Vec<u8> = [1.5_f64, -2.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let f2 = [0x00, 0x3e, 0x00, 0xc0];
        for (version, header, data) in [
            (
                1,
                "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n",
                &f4[..],
            ),
            (
                2,
                "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2), }",
                &f8,
            ),
            (
                3,
                "{'shape': (1, 2, 1), 'fortran_order': True, 'descr': '<f2'}",
                &f2,
            ),
        ] {
            assert_eq!(
                parse(&npy(version, header, data)),
                Ok(vec![1.5, -2.0]),
                "{header}"
            );
        }
    }

    #[test]
    fn what_is_no_plain_float_array_is_refused() {
        for (header, problem) in [
            (
                "{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}",
                "its values have type `>f4`",
            ),
            (
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
                "its values have type `|O`",
            ),
            (
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
                "it holds a structured array",
            ),
            (
                "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}",
                "its shape [2, 2] is in Fortran order",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
                "its shape [2] of <f4 does not fill its 4 bytes",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False}",
                "its header lacks `shape`",
            ),
        ] {
            let error = parse(&npy(1, header, &[0; 4])).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
        }
        assert_eq!(parse(b"PK\x03\x04"), Err("it is no .npy file".into()));
        assert_eq!(
            parse(b"\x93NUMPY\x01\x00\xff\xff"),
            Err("its header is cut off".into())
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(version in 0_u8..5, header in ".{0,80}", data in proptest::collection::vec(any::<u8>(), 0..16)) {
            let _ = parse(&npy(version, &header, &data));
            let _ = parse(&data);
        }
    }
}
