"""Random views from given parameters, one image and one pixel at a time, in float64."""

import colorsys
import math

import numpy as np

LUMA = (0.2989, 0.587, 0.114)
YIQ = np.array([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])


def view(image, drawn, exact_hue, blur_radius=0):
    """One image [C, H, W] in [0, 1]; ``drawn`` holds one number for each field."""
    image = moved(image, drawn)
    image = jittered(image, drawn, stepwise=exact_hue)
    image = np.clip(image, 0, 1)
    return blurred(image, drawn["sigma"], blur_radius) if drawn["sigma"] > 0 else image


def moved(image, drawn):
    """Crop and resize, then shift, then flip."""
    cropped = resized(image, *(int(drawn[name]) for name in ("top", "left", "height", "width")))
    _, height, width = image.shape
    window = np.zeros_like(cropped)
    for row in range(height):
        for column in range(width):
            r, c = row + int(drawn["down"]), column + int(drawn["right"])
            if 0 <= r < height and 0 <= c < width:
                window[:, row, column] = cropped[:, r, c]
    return window[:, :, ::-1] if drawn["flip"] else window


def resized(image, top, left, height, width):
    """Resize the crop to the size of the image; bilinear, pixel centers at halves, no antialiasing."""
    crop = image[:, top : top + height, left : left + width]
    result = np.zeros_like(image)
    for row in range(image.shape[1]):
        y0, y1, fy = neighbors((row + 0.5) * height / image.shape[1] - 0.5, height)
        for column in range(image.shape[2]):
            x0, x1, fx = neighbors((column + 0.5) * width / image.shape[2] - 0.5, width)
            upper = (1 - fx) * crop[:, y0, x0] + fx * crop[:, y0, x1]
            lower = (1 - fx) * crop[:, y1, x0] + fx * crop[:, y1, x1]
            result[:, row, column] = (1 - fy) * upper + fy * lower
    return result


def neighbors(place, size):
    place = min(max(place, 0.0), size - 1.0)
    first = math.floor(place)
    return first, min(first + 1, size - 1), place - first


def jittered(image, drawn, stepwise):
    """Brightness, contrast, saturation, hue, grayscale in this order; each clamped if ``stepwise``."""

    def clamp(values):
        return np.clip(values, 0, 1) if stepwise else values

    image = clamp(image * drawn["brightness"])
    image = clamp(drawn["contrast"] * image + (1 - drawn["contrast"]) * gray(image).mean())
    if len(image) != 3:
        return image
    image = clamp(drawn["saturation"] * image + (1 - drawn["saturation"]) * gray(image))
    if drawn["hue"]:
        image = rotate_hue_hsv(image, drawn["hue"]) if stepwise else rotate_hue_yiq(image, drawn["hue"])
    return np.repeat(gray(image)[None], 3, 0) if drawn["gray"] else image


def gray(image):
    return np.tensordot(LUMA, image, 1) if len(image) == 3 else image[0]


def rotate_hue_hsv(image, turns):
    result = np.zeros_like(image)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column])
            result[:, row, column] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    return result


def rotate_hue_yiq(image, turns):
    """Rotate I and Q by an angle, keep Y. From red to green the angle in the (I, Q) plane decreases."""
    angle = -2 * math.pi * turns
    result = np.zeros_like(image)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            y, i, q = YIQ @ image[:, row, column]
            chroma = complex(i, q) * complex(math.cos(angle), math.sin(angle))
            result[:, row, column] = np.linalg.solve(YIQ, [y, chroma.real, chroma.imag])
    return result


def blurred(image, sigma, radius):
    weights = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(-radius, radius + 1)]
    weights = [weight / sum(weights) for weight in weights]

    def mirrored(place, size):
        place = abs(place)
        return 2 * (size - 1) - place if place >= size else place

    def along(values, axis):
        result = np.zeros_like(values)
        for place in range(values.shape[axis]):
            for weight, step in zip(weights, range(-radius, radius + 1), strict=True):
                source = np.take(values, mirrored(place + step, values.shape[axis]), axis)
                if axis == 1:
                    result[:, place] += weight * source
                else:
                    result[:, :, place] += weight * source
        return result

    return along(along(image, 1), 2)
