"""A frozen CLIP and a trained method as one file that runs without this package.

Pixels go in, or local features; out come a score of each class, and where each class is. Whatever
follows from the class names alone is computed once and kept (`dclip.exports.heads`).

    from dclip.exports.export import export_of, write

    write(export_of(backbone, method), Path("model.onnx"), "onnx")
"""
