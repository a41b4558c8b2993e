"""Files to frames: images, DICOM, video and volumes through one way of decoding."""
