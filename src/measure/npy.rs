//! Numbers in NumPy's .npy format (NEP 1): a magic word, a version, a header that is a Python dictionary, the elements.

const MAGIC: &[u8] = b"\x93NUMPY";

/// Why a .npy file cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NpyError {
    /// The file has another format.
    #[error("it does not begin like one")]
    Magic,
    /// The header is truncated, or lacks `descr`, `fortran_order` or `shape`.
    #[error("its header cannot be read")]
    Header,
    /// The elements are text, records, or floats where integers are expected.
    #[error("its elements are '{0}'")]
    ElementType(String),
    /// The elements are in Fortran order.
    #[error("its axes are in Fortran's order; save numpy.ascontiguousarray of it")]
    Order,
    /// The number of bytes does not fit the shape.
    #[error("its shape {shape} does not fit the {found} bytes of its elements")]
    Length {
        /// The shape in the header.
        shape: String,
        /// Number of bytes after the header.
        found: usize,
    },
}

/// The elements of a .npy file of integers, of any width and any number of dimensions.
///
/// # Errors
/// [`NpyError`] if `file` is not such a file.
pub fn integers(file: &[u8]) -> Result<Vec<i64>, NpyError> {
    let array = Array::of(file)?;
    match array.kind {
        NumberKind::Integers { signed } => Ok(array.each(|bytes| number(bytes.iter(), signed))),
        NumberKind::Floats | NumberKind::Booleans => Err(array.unknown()),
    }
}

/// The shape and the elements of a .npy file of integers, booleans, or floats of single or double precision.
///
/// # Errors
/// [`NpyError`] if `file` is not such a file.
pub fn numbers(file: &[u8]) -> Result<(Vec<usize>, Vec<f64>), NpyError> {
    let array = Array::of(file)?;
    let values = match array.kind {
        NumberKind::Integers { signed } => array.each(|bytes| number(bytes.iter(), signed) as f64),
        NumberKind::Booleans => array.each(|bytes| number(bytes.iter(), false) as f64),
        NumberKind::Floats if array.width == 4 => {
            array.each(|bytes| f64::from(f32::from_bits(number(bytes.iter(), false) as u32)))
        }
        NumberKind::Floats => {
            array.each(|bytes| f64::from_bits(number(bytes.iter(), false) as u64))
        }
    };
    Ok((array.shape, values))
}

/// The kind of the elements of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberKind {
    Integers { signed: bool },
    Floats,
    Booleans,
}

/// A .npy file with its header read.
struct Array<'f> {
    kind: NumberKind,
    descr: &'f str,
    /// Bytes of one element.
    width: usize,
    shape: Vec<usize>,
    elements: &'f [u8],
}

impl<'f> Array<'f> {
    fn of(file: &'f [u8]) -> Result<Self, NpyError> {
        let rest = file.strip_prefix(MAGIC).ok_or(NpyError::Magic)?;
        let (header, elements) = split(rest).ok_or(NpyError::Header)?;
        let descr = entry(header, "descr")
            .and_then(|text| text.split('\'').nth(1))
            .ok_or(NpyError::Header)?;
        let written = entry(header, "shape")
            .and_then(|text| text.strip_prefix('(')?.split(')').next())
            .ok_or(NpyError::Header)?;
        let fortran = entry(header, "fortran_order").ok_or(NpyError::Header)?;
        let unknown = || NpyError::ElementType(descr.to_owned());
        let (_, name) = descr.split_at_checked(1).ok_or_else(unknown)?;
        let (kind, width) = match name {
            "i1" => (NumberKind::Integers { signed: true }, 1),
            "i2" => (NumberKind::Integers { signed: true }, 2),
            "i4" => (NumberKind::Integers { signed: true }, 4),
            "i8" => (NumberKind::Integers { signed: true }, 8),
            "u1" => (NumberKind::Integers { signed: false }, 1),
            "u2" => (NumberKind::Integers { signed: false }, 2),
            "u4" => (NumberKind::Integers { signed: false }, 4),
            "b1" => (NumberKind::Booleans, 1),
            "f4" => (NumberKind::Floats, 4),
            "f8" => (NumberKind::Floats, 8),
            _ => return Err(unknown()),
        };
        let sizes = written.split(',').map(str::trim).filter(|s| !s.is_empty());
        let shape: Vec<usize> = sizes
            .map(|size| size.parse().map_err(|_| NpyError::Header))
            .collect::<Result<_, _>>()?;
        if fortran.starts_with("True") && shape.len() > 1 {
            return Err(NpyError::Order);
        }
        let bytes = shape
            .iter()
            .try_fold(width, |bytes: usize, size| bytes.checked_mul(*size));
        if bytes != Some(elements.len()) {
            return Err(NpyError::Length {
                shape: format!("({written})"),
                found: elements.len(),
            });
        }
        Ok(Self {
            kind,
            descr,
            width,
            shape,
            elements,
        })
    }

    /// Applies `read` to the bytes of each element, most significant byte first.
    fn each<T>(&self, read: impl Fn(&[u8]) -> T) -> Vec<T> {
        let big = self.descr.starts_with('>');
        let element = |bytes: &[u8]| match big {
            true => read(bytes),
            false => read(&bytes.iter().rev().copied().collect::<Vec<u8>>()),
        };
        self.elements
            .chunks_exact(self.width)
            .map(element)
            .collect()
    }

    fn unknown(&self) -> NpyError {
        NpyError::ElementType(self.descr.to_owned())
    }
}

/// The number with the given `bytes`, most significant byte first.
fn number<'b>(bytes: impl Iterator<Item = &'b u8> + Clone, signed: bool) -> i64 {
    let negative = signed && bytes.clone().next().is_some_and(|first| *first >= 0x80);
    bytes.fold(if negative { -1 } else { 0 }, |number, byte| {
        number << 8 | i64::from(*byte)
    })
}

/// The text of the header, and the bytes after it. The length of the header has 2 bytes in version 1, 4 bytes in later
/// ones.
fn split(rest: &[u8]) -> Option<(&str, &[u8])> {
    let (version, rest) = rest.split_at_checked(2)?;
    let (length, rest) = rest.split_at_checked(if version.first() == Some(&1) { 2 } else { 4 })?;
    let length = length
        .iter()
        .rev()
        .fold(0, |n: usize, b| n << 8 | usize::from(*b));
    let (header, elements) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, elements))
}

/// The text of the header after `key`.
fn entry<'h>(header: &'h str, key: &str) -> Option<&'h str> {
    let (_, after) = header.split_once(&format!("'{key}'"))?;
    Some(after.trim_start().strip_prefix(':')?.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(descr: &str, fortran: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let length = (header.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), elements].concat()
    }

    #[test]
    fn integers_of_every_width_and_order_are_read() {
        let read = |descr, elements: &[u8]| integers(&file(descr, "False", "(2,)", elements));
        assert_eq!(read("|u1", &[1, 255]), Ok(vec![1, 255]));
        assert_eq!(read("|i1", &[1, 255]), Ok(vec![1, -1]));
        assert_eq!(read("<u2", &[1, 2, 0, 128]), Ok(vec![513, 32768]));
        assert_eq!(read(">i2", &[2, 1, 255, 254]), Ok(vec![513, -2]));
        let wide = [7i64.to_le_bytes(), i64::MIN.to_le_bytes()].concat();
        assert_eq!(read("<i8", &wide), Ok(vec![7, i64::MIN]));
    }

    #[test]
    fn floats_and_booleans_are_read_where_any_number_will_do() {
        let read = |descr, shape, elements: &[u8]| numbers(&file(descr, "False", shape, elements));
        assert_eq!(
            read("<f4", "(1,)", &1.5f32.to_le_bytes()),
            Ok((vec![1], vec![1.5]))
        );
        assert_eq!(
            read(">f8", "()", &(-2.5f64).to_be_bytes()),
            Ok((vec![], vec![-2.5]))
        );
        assert_eq!(
            read("|b1", "(2, 1)", &[1, 0]),
            Ok((vec![2, 1], vec![1.0, 0.0]))
        );
        assert_eq!(read("<i2", "(1,)", &[255, 255]), Ok((vec![1], vec![-1.0])));
    }

    #[test]
    fn axes_are_read_in_order_or_refused() {
        let four = [1, 2, 3, 4];
        let read = |fortran, shape| integers(&file("|u1", fortran, shape, &four));
        assert_eq!(read("False", "(2, 2)"), Ok(vec![1, 2, 3, 4]));
        assert_eq!(read("True", "(4,)"), Ok(vec![1, 2, 3, 4]));
        assert_eq!(read("True", "(2, 2)"), Err(NpyError::Order));
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        assert_eq!(integers(b"[1, 2]"), Err(NpyError::Magic));
        assert_eq!(
            integers(b"\x93NUMPY\x01\x00\xff\xff{"),
            Err(NpyError::Header)
        );
        let read = |descr, shape| integers(&file(descr, "False", shape, &[0; 8]));
        assert_eq!(
            read("<f8", "(1,)"),
            Err(NpyError::ElementType("<f8".to_owned()))
        );
        for shape in ["(2,)", "(1152921504606846976,)", "(4294967296, 4294967296)"] {
            assert!(
                matches!(read("<i8", shape), Err(NpyError::Length { .. })),
                "{shape}"
            );
        }
    }
}
